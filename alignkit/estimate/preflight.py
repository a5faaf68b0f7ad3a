"""What is checked of a whole plan before any weights are loaded: does every model fit its stage, and this machine.

`alignkit check` does it in its own process, `alignkit recipe` and `compare` in a process of the stages' kind: the
runner writes what is asked into a folder (`ASKED`), and finds the answer there (`FOUND`). A plan that was found good is
not looked at again; a refusal is not kept, as what it names may be mended by now.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignkit.contract.needs import TrainerNeeds
from alignkit.errors import AlignkitError, Problem, one_line
from alignkit.estimate.desk import Desk, desk_for
from alignkit.estimate.host import state_of_host
from alignkit.plan.plan import Plan, PlannedStage, policies_of
from alignkit.plan.planner import plan_recipe
from alignkit.recipe.recipe import recipe_as_json, recipe_of_json
from alignkit.store import rundir
from alignkit.store.durable import read_json, write_json
from alignkit.text import duration, size, table

if TYPE_CHECKING:
    from alignkit.estimate.chat_check import Chats
    from alignkit.estimate.estimator import Estimate, Estimator
    from alignkit.training.room import Arrangement

ASKED, FOUND, DOING = "asked.json", "found.json", "doing.json"
VERSION = 6
"""Raised when what is looked at changes."""
GIB = 2**30
YEAR = 365 * 24 * 3600.0
LONGEST = 10 * YEAR
"""Seconds of a stage; more is a mistake."""
STAGE = re.compile(r"stage ('[^']*')(.*)", re.DOTALL)
"""Where a problem is, if it begins with a stage."""


@dataclass(frozen=True)
class Sharing:
    """Among how many processes stages are shared, and how models learn in each."""

    processes: int = 1
    sharded: bool = False
    """Weights may be cut up among them."""
    always: bool = False
    """They are, also of stages that one process has the memory for."""
    again: bool | Literal["auto"] = "auto"
    """Layers are computed again for the gradient."""
    compiles: bool = False
    """Layers are compiled."""
    states: Literal["fp32", "8bit"] = "fp32"
    """How the optimiser keeps its moments."""
    nodes: int = 1
    """Computers that the processes are on, the same number on each."""
    where: str = ""
    """Which computers, where it is not this one: what fits them says nothing of others."""
    served: bool = False
    """Servers score by reward models."""

    def arrangement(self) -> "Arrangement":
        """Return how models learn, as they are told it."""
        from alignkit.training.room import Arrangement

        return Arrangement(self.again, self.compiles, self.states)

    def memory(self) -> int:
        """Return how much memory each process has, in bytes; on a processor those of a node share its own."""
        from alignkit.estimate.formulas import machine_memory
        from alignkit.training.arithmetic import device

        return machine_memory() // (self.processes // self.nodes if device().type == "cpu" else 1)

    def cuts(self, memory: float) -> bool:
        """Return whether the weights of a stage are cut up that would take so many bytes in one process."""
        return self.processes > 1 and self.sharded and (self.always or memory > self.memory())


ALONE = Sharing()


@dataclass
class Preflight:
    """What was found."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    """Of each stage that can be estimated: `stage`, `method`, `memory` of a process and `disk` in bytes, `seconds`,
    of which `stepping` in `steps`, with `prompt` and `answer` tokens in a row, `parts` of the memory, and whether it
    `fits` one process."""
    problems: list[Problem] = field(default_factory=list)
    """What would end a stage."""
    remarks: list[Problem] = field(default_factory=list)
    """Warnings."""


def preflight(desk: Desk, on: Sharing = ALONE, doing: Callable[[str], None] = lambda what: None) -> Preflight:
    """Look at all wanted stages; `doing` is told which of them."""
    from transformers.utils import logging

    from alignkit.estimate.architecture import architecture
    from alignkit.estimate.chat_check import Chats
    from alignkit.estimate.estimator import Estimator
    from alignkit.training.packing import FAILURES

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of the small models that are tried
    found, estimator, room = Preflight(), Estimator(desk, on.arrangement(), on.served), on.memory()
    found.problems += _of_machine(on)
    chats, disk = Chats(desk), 0.0
    wanted = [stage for stage in desk.plan.stages if stage.wanted]
    for number, stage in enumerate(wanted, start=1):
        doing(f"checking model and memory ({number} of {len(wanted)}): {stage.name}")
        if not _take(found, stage, chats):
            continue
        try:
            found.remarks += estimator.remarks(stage)
            trial = architecture(desk, stage)
            found.remarks += [remark for remark in trial.remarks if remark not in found.remarks]
            if trial.problems:
                found.problems += _of_stage(stage, trial.problems)
                continue
            estimate = estimator.estimate(stage, stage.needs)
        except AlignkitError as error:
            found.problems += _of_stage(stage, error.problems)
            continue
        except FAILURES as error:
            problem = f"what it will need cannot be estimated ({one_line(error)})"
            found.remarks.append(Problem(problem, f"stage {stage.name!r}", "--smoke tries it, and measures"))
            continue
        if estimate is None:
            continue
        fits = estimate.memory <= room
        if on.cuts(estimate.memory):
            if what := whole_only(stage, desk, on):
                remedy = "set sharded = false for the machine in machines.toml"
                found.problems.append(Problem(f"{what} cannot be sharded", f"stage {stage.name!r}", remedy))
                continue
            estimate = estimator.estimate(stage, stage.needs, on.processes) or estimate
        found.stages.append({**_plain(estimate), "fits": fits})
        disk += estimate.need.disk
        if estimate.need.seconds > LONGEST:
            found.problems.append(too_long(stage, estimate))
        if estimate.memory > room:
            found.problems.append(too_large(stage, estimate, on, estimator))
    found.problems += list(_disk_problems(disk, desk.runs))
    found.problems, found.remarks = together(found.problems), together(found.remarks)
    return found


def _of_machine(on: Sharing) -> Sequence[Problem]:
    """Return what the machine is said to do and cannot."""
    from alignkit.training import optimisers

    try:
        optimisers.check(on.states)
    except AlignkitError as error:
        return error.problems
    return []


def whole_only(stage: PlannedStage, desk: Desk, on: Sharing) -> str:
    """Say what of a stage's policy cannot be cut up among processes; nothing where all can."""
    if on.states == "8bit" and stage.needs:
        return "an optimiser with 8-bit states"
    if isinstance(stage.needs, TrainerNeeds):
        return "what a trainer of TRL trains"
    if stage.needs and stage.needs.upper_layers and not stage.needs.lora:
        return "a policy whose lower layers are frozen"
    loads = [desk.open(source).load for source in policies_of(desk.plan, stage)]
    return next((f"weights in {load}" for load in loads if load), "")


def together(problems: Sequence[Problem]) -> list[Problem]:
    """Tell once what is the same for several stages, with the names of all of them."""
    alike = dict[tuple[str, str, str], list[str]]()
    for one in problems:
        told = STAGE.fullmatch(one.where)
        stage, rest = told.groups() if told else ("", one.where)
        names = alike.setdefault((rest, one.problem, one.remedy), [])
        names += [stage] if stage not in names else []
    found = []
    for (rest, problem, remedy), names in alike.items():
        *most, last = [name for name in names if name] or [""]
        begin = f"stages {', '.join(most)} and {last}" if most else f"stage {last}" if last else ""
        found.append(Problem(problem, begin + rest if begin else rest, remedy))
    return found


def _take(found: Preflight, stage: PlannedStage, chats: "Chats") -> bool:
    """Look at the chats of a stage; say whether it can be trained on them."""
    try:
        told = chats.look(stage)
    except AlignkitError as error:
        found.problems += _of_stage(stage, error.problems)
        return False
    found.problems += told.problems
    found.remarks += told.remarks
    return not told.problems


def _of_stage(stage: PlannedStage, problems: Sequence[Problem]) -> list[Problem]:
    """Return of which stage these are."""
    where = f"stage {stage.name!r}"
    return [Problem(one.problem, f"{where}, {one.where}" if one.where else where, one.remedy) for one in problems]


def show(stages: Sequence[Mapping[str, Any]], width: int | None) -> list[str]:
    """Return the lines that tell what stages will need."""
    rows = [
        (str(one["stage"]), str(one["method"]), size(one["memory"]), duration(one["seconds"]), size(one["disk"]))
        for one in stages
    ]
    return table(rows, width, ("needs", "method", "memory", "time", "disk"))


def too_large(stage: PlannedStage, estimate: "Estimate", on: Sharing, estimator: "Estimator") -> Problem:
    """Say that a stage needs more memory than there is, and what would help most."""
    has = "this machine" if on.processes == 1 else f"each of its {on.processes} processes"
    problem = f"needs about {estimate.memory / GIB:.1f} GiB of memory, and {has} has {on.memory() / GIB:.1f}"
    helps = [f"--set {one.setting} ({one.memory / GIB:.1f} GiB)" for one in estimator.helps(stage)]
    remedy = ", ".join(helps) or "take a smaller model"
    return Problem(problem, f"stage {stage.name!r}", remedy)


def too_long(stage: PlannedStage, estimate: "Estimate") -> Problem:
    """Say that a stage would outlive whoever waits for it: a size was mistyped."""
    problem = f"would take about {estimate.need.seconds / YEAR:,.0f} years"
    return Problem(problem, f"stage {stage.name!r}", "lower what multiplies its steps, such as epochs or updates")


def _disk_problems(needed: float, runs: Path) -> Iterator[Problem]:
    place = next(folder for folder in (runs.resolve(), *runs.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        problem = f"the stages need about {needed / GIB:.1f} GiB of disk, and {free / GIB:.1f} GiB are free"
        yield Problem(problem, str(place), "free some, or name another folder with --runs")


def _plain(estimate: "Estimate") -> dict[str, Any]:
    need = estimate.need
    facts = {
        "memory": estimate.memory,
        "disk": need.disk,
        "parts": {**need.parts, "libraries": float(estimate.libraries)},
    }
    times = {"seconds": need.seconds, "stepping": need.stepping, "steps": need.steps}
    lengths = {"prompt": need.prompt, "answer": need.answer}
    return {"stage": estimate.stage, "method": estimate.method, **times, **lengths, **facts}


def ask(plan: Plan, open_stages: Sequence[str], runs: Path, offline: bool, on: Sharing = ALONE) -> Path:
    """Write what is to be checked, into a folder of this plan's own; what was found before may lie there."""
    recipe = recipe_as_json(plan.recipe)
    asked = {
        "version": VERSION,
        "recipe": {key: value for key, value in recipe.items() if key != "text"},
        "stages": {stage.name: stage.fingerprint for stage in plan.stages if stage.name in open_stages},
        "runs": str(runs),
        "plugins": [str(file) for file in plan.plugin_files],
        "offline": offline,
        "machine": state_of_host(),
        "on": asdict(on),
    }
    text = json.dumps(asked, default=str)
    folder = rundir.cache_folder(runs) / f"preflight-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ASKED, json.loads(json.dumps({**asked, "recipe": recipe}, default=str)))
    return folder


def forget(folder: Path) -> None:
    """Remove what was found before."""
    for name in (FOUND, DOING):
        (folder / name).unlink(missing_ok=True)


def doing_in(folder: Path) -> str:
    """Return what is being done by whoever answers what is asked in a folder."""
    return str(read_json(folder / DOING).get("what", ""))


def answer(folder: Path) -> None:
    """Check what is asked in a folder, and write there what was found."""
    from alignkit.estimate.stage_previews import previews
    from alignkit.plugins import load_plugins

    asked = read_json(folder / ASKED)
    runs, files = Path(asked["runs"]), tuple(Path(file) for file in asked["plugins"])
    plan = plan_recipe(recipe_of_json(asked["recipe"]), load_plugins(files, examined=False), runs=runs, files=files)

    def doing(what: str) -> None:
        write_json(folder / DOING, {"what": what})

    doing("reading rows")
    desk, _ = desk_for(plan, runs, asked["offline"], asked["stages"])
    found = preflight(desk, Sharing(**asked["on"]), doing)
    write_json(folder / FOUND, asdict(found))
    if not found.problems:
        doing("counting tokens for the report")
        with suppress(AlignkitError):  # for the report alone: a method of its own kind may read rows that ours cannot
            list(previews(desk))


def remembered(folder: Path, runs: Path) -> Preflight | None:
    """Return what was found before, if that still holds: nothing was refused, and the disk has room."""
    found = found_in(folder)
    if found is None or found.problems or any(_disk_problems(sum(one["disk"] for one in found.stages), runs)):
        return None
    return found


def found_in(folder: Path) -> Preflight | None:
    """Read what was found; None where nobody looked."""
    found = read_json(folder / FOUND)
    if not found:
        return None
    problems, remarks = ([Problem(**one) for one in found[side]] for side in ("problems", "remarks"))
    return Preflight(found["stages"], problems, remarks)
