"""Run a plan: reuse what is finished, start what is not, follow it, and stop where a stage or a gate says so."""

import secrets
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.contract.constraint import COSTS
from alignkit.contract.events import Doing, Estimated, StageFailed, StageFinished, Stopping, Warned
from alignkit.contract.kinds import Artifact, Policy, Records
from alignkit.environment import set_environment
from alignkit.errors import AlignkitError, Problem, RecipeError
from alignkit.estimate import preflight
from alignkit.estimate.host import host_memory
from alignkit.plan.pin import pin
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.plan.planner import make_plan
from alignkit.run.event_log import EventLog
from alignkit.run.failures import error_of, explain, failure_of
from alignkit.run.follow import Audience, Observer, StageFollower
from alignkit.run.gates import check_gates, doubts
from alignkit.run.keeping import RunRecord
from alignkit.run.launch import IMPORTING, Launcher
from alignkit.run.launching import launchers_of
from alignkit.run.machine import Machine
from alignkit.run.order import Order, given, write_order
from alignkit.run.requeues import Requeues
from alignkit.run.reuse import reuse, run_again
from alignkit.run.run_result import RunResult, StageResult
from alignkit.run.side_by_side import check_jobs, dealt, error_of_all, has_driver, lack_of_memory, visible_gpus
from alignkit.run.stopping import Left, Stop, noting_signals
from alignkit.run.tracking import end_trackers, start_trackers
from alignkit.run.worker import work
from alignkit.show.notebook import NotebookView, in_notebook
from alignkit.sources.fetch import Fetched, fetch, open_judges
from alignkit.sources.source import Source
from alignkit.store import rundir
from alignkit.store.file_hashes import FileHashes
from alignkit.store.locks import check_free, holder_elsewhere
from alignkit.store.results import Finished, find_finished

POLL = 0.05
"""Seconds between two looks at what a running stage tells."""

PATIENCE = 300.0
"""Seconds that a stage has to end when it is asked to; it leaves by itself much earlier, unless something hangs."""


class StoppedError(AlignkitError):
    """The run was stopped by a signal; the same command goes on from there."""

    def __init__(self, stage: str, status: int) -> None:
        super().__init__("stopped", f"stage {stage!r}", "the same command goes on from here")
        self.status = status


def run_recipe(
    recipe: str | Path,
    *,
    set: Mapping[str, object] | None = None,  # noqa: A002  # the word of the command line
    seed: int | None = None,
    runs: str | Path = "runs",
    until: str | None = None,
    again: Sequence[str] = (),
    jobs: int = 1,
    inline: bool = False,
    offline: bool = False,
    machine: Machine | None = None,
    plugins: Sequence[str | Path] = (),
    observers: Sequence[Observer] = (),
) -> RunResult:
    """Run a recipe, from a script or a notebook: `run_recipe("rlhf.toml", set={"align.method": "dpo"})`.

    Finished stages are reused; up to `jobs` stages run at the same time, where none waits for another. Raises
    RecipeError, DataError or PluginError before anything runs, and StageError where a stage fails.
    """

    def plan() -> Plan:
        return make_plan(recipe, set=set, seed=seed, runs=runs, until=until, plugins=plugins)

    made = plan()
    if any(stage.wanted and stage.fingerprint is None for stage in made.stages):
        pin(made, Path(runs), offline)
        made = plan()
    how: dict[str, Any] = {"jobs": jobs, "inline": inline, "offline": offline, "machine": machine}
    return run_plan(made, runs=runs, observers=[*notebook_views(made), *observers], again=again, check=True, **how)


def notebook_views(plan: Plan) -> list[Observer]:
    """Return what shows a run where a notebook runs it."""
    return [NotebookView([stage.name for stage in plan.stages if stage.wanted])] if in_notebook() else []


def run_plan(
    plan: Plan,
    *,
    runs: str | Path = "runs",
    observers: Sequence[Observer] = (),
    again: Sequence[str] = (),
    jobs: int = 1,
    inline: bool = False,
    offline: bool = False,
    machine: Machine | None = None,
    fork: bool = sys.platform == "linux",
    stop: Stop | None = None,
    check: bool = False,
    record: RunRecord | None = None,
) -> RunResult:
    """Run the wanted stages of a plan in order, those named by `again` even if they are finished.

    `inline` runs stages in this process. `fork` starts them from a process that has imported the heavy libraries once;
    without it, as is needed on macOS, each imports them anew. `check` looks first whether the models of all stages fit
    them, and this machine (`alignkit.estimate.preflight`). `record` is where the run is kept; by default it begins one
    of its own. Raises StageError with the exit status of what failed, LockedError, or StoppedError after a signal.

    Up to `jobs` stages run at the same time, where none waits for another. One that fails ends none of those beside
    it, and what does not need it still runs.
    """
    folder = Path(runs).resolve()
    machine, stop = machine or Machine(), Stop() if stop is None else stop
    check_jobs(jobs, inline, machine)
    jobs = 1 if plan.is_chain else jobs
    again = run_again(plan, again)
    with ExitStack() as resources:
        resources.enter_context(noting_signals(stop))
        record = record or resources.enter_context(RunRecord(plan, folder))
        launchers = launchers_of(machine, folder, jobs=jobs, fork=fork, offline=offline)
        free = [_Slot(resources.enter_context(launcher)) for launcher in launchers]
        trackers = start_trackers(plan, record.folder, offline)
        watching: list[Observer] = [*observers, EventLog(record.folder), record, *trackers]
        tell = Audience(plan.plugins.hooks, watching, record.folder / rundir.OBSERVERS).tell
        resources.push(partial(end_trackers, trackers, plan.stages[-1].name, tell))
        hashes = FileHashes(rundir.file_hashes(folder))
        run = _Run(plan, folder, again, inline, offline, machine, stop, free, tell, check, hashes)
        results = run.stages()
    return RunResult(plan.recipe.name, record.folder, results)


@dataclass
class _Slot:
    """Where one stage at a time can run."""

    launcher: Launcher
    gpus: tuple[str, ...] = ()
    """Its own; where there are none a stage has all."""


@dataclass
class _Working:
    """A stage that runs now."""

    stage: PlannedStage
    slot: _Slot
    looks: Iterator[None]
    """Each look passes on what the stage has told since the last one; there is none once the stage is finished."""


@dataclass
class _Run:
    """One run: what is finished so far, and how to finish the rest."""

    plan: Plan
    runs: Path
    again: Sequence[str]
    inline: bool
    offline: bool
    machine: Machine
    stop: Stop
    free: list[_Slot]
    """Where no stage runs now."""
    tell: Observer
    check: bool
    hashes: FileHashes
    jobs: int = field(init=False)
    large: set[str] = field(default_factory=set)
    """Stages that need more memory than one process has."""
    memory: dict[str, float] = field(default_factory=dict)
    """Stage -> bytes that it is estimated to need of this machine's main memory."""
    finished: dict[str, Finished] = field(default_factory=dict)
    """Stages that are through, with their gates."""
    fetched: dict[str, Fetched] | None = None
    """Source -> its artifact, once all that the stages which are left need was looked at."""
    results: dict[str, StageResult] = field(default_factory=dict)
    working: list[_Working] = field(default_factory=list)
    failures: list[AlignkitError] = field(default_factory=list)
    told_to_wait: set[str] = field(default_factory=set)
    told_to_stop: bool = False

    def __post_init__(self) -> None:
        self.jobs = len(self.free)

    @property
    def _machine(self) -> Machine:
        """Return what stages run on; inline, that is this process alone."""
        return Machine() if self.inline else self.machine

    def stages(self) -> tuple[StageResult, ...]:
        """Finish all stages that are wanted, and return their results in the plan's order."""
        self._tell_broken()
        waiting = [stage for stage in self.plan.stages if stage.wanted]
        self._begin_some(waiting)
        while self.working:
            for one in list(self.working):
                self._look_after(one)
            self._begin_some(waiting)
        if self.failures:
            raise error_of_all(self.failures)
        return tuple(self.results[stage.name] for stage in self.plan.stages if stage.wanted)

    def _begin_some(self, waiting: list[PlannedStage]) -> None:
        """Begin the stages whose turn it is."""
        while stage := self._choose(waiting):
            waiting.remove(stage)
            try:
                self._begin(stage)
            except AlignkitError as error:
                self.failures.append(error)

    def _choose(self, waiting: Sequence[PlannedStage]) -> PlannedStage | None:
        """Choose the first stage that waits for nothing; what lacks memory beside those that run is told so."""
        if not self.free or self._halted:
            return None
        beside = [one.stage.name for one in self.working]
        for stage in waiting:
            if not self.plan.waits_for(stage) <= self.finished.keys():
                continue
            lack = lack_of_memory(stage.name, beside, self.memory, host_memory())
            if not lack:
                return stage
            if stage.name not in self.told_to_wait:
                self.told_to_wait.add(stage.name)
                self.tell(Doing(stage.name, lack))
        return None

    @property
    def _halted(self) -> bool:
        """Nothing more begins: a signal came, or a stage failed where no other could run beside it."""
        if self.stop.asked:
            return bool(self.working or self.failures)
        return bool(self.failures) and (self.jobs == 1 or self.fetched is None)

    def _begin(self, stage: PlannedStage) -> None:
        """Reuse a stage, or start it."""
        with self._left_at_once(stage.name):
            found = reuse(stage, self.runs, self.again, self.finished)
            if not found and self.fetched is None:
                self.fetched = self._prepare(stage.name)
        if found:
            self._conclude(stage, found, reused=True)
        else:
            slot = self.free.pop(0)
            self.working.append(_Working(stage, slot, self._looks(stage, slot)))

    def _look_after(self, one: _Working) -> None:
        """Look after a stage that runs. A failure counts once no stage runs any more."""
        try:
            next(one.looks)
            return
        except StopIteration:
            pass
        except AlignkitError as error:
            self.failures.append(error)
        self.working.remove(one)
        self.free.append(one.slot)

    def _tell_broken(self) -> None:
        """Report which of the files that were given as plugins are of no use."""
        first = next((stage.name for stage in self.plan.stages if stage.wanted), "")
        for broken in self.plan.plugins.broken:
            if broken.origin.file:
                problem = f"the plugin {broken.origin.file.name} cannot be loaded ({broken.reason})"
                self.tell(Warned(first, problem, "correct it, or leave -p out"))

    @contextmanager
    def _left_at_once(self, stage: str) -> Iterator[None]:
        """Heed signals wherever they come; raises StoppedError."""
        try:
            with self.stop.at_once():
                yield
        except Left:
            self._tell_stopping(stage)
            raise StoppedError(stage, self.stop.status) from None

    def _tell_stopping(self, stage: str) -> None:
        """Report once that a signal asks the run to stop, whatever number of stages runs."""
        if not self.told_to_stop:
            self.tell(Stopping(stage))
        self.told_to_stop = True

    def _prepare(self, first: str) -> dict[str, Fetched]:
        """Look at all that the stages which are left need, before the first of them runs."""
        left = self._left()
        self._deal(first, left)
        self._check_inputs(left)
        open_judges(self._needed(), self.plan.plugins.schemes)
        fetched = fetch(self._needed(), self.runs, self.offline, lambda what: self.tell(Doing(first, what)))
        self._warn(first, left, [remark for one in fetched.values() for remark in one.remarks])
        if self.check:
            self._preflight(first)
        return fetched

    def _deal(self, first: str, left: Sequence[PlannedStage]) -> None:
        """Give each of the stages that run at the same time GPUs of its own. Raises RecipeError where it cannot."""
        models = any(stage.method.handles_models for stage in left)
        if self.jobs == 1 or self.machine.start != "here" or not models or not has_driver():
            return
        self.tell(Doing(first, "looking for GPUs"))
        for slot, gpus in zip(self.free, dealt(visible_gpus(), self.jobs, self.machine.processes), strict=True):
            slot.gpus = gpus

    def _left(self) -> list[PlannedStage]:
        return [stage for stage in self.plan.stages if stage.wanted and stage.name not in self.finished]

    def _needed(self) -> list[Source]:
        """List the sources of all stages that are not finished: their rows are checked before the first one runs."""
        names = {name for stage in self._left() for name in stage.taken}
        return [source for name, source in self.plan.sources.items() if name in names]

    def _check_inputs(self, stages: Sequence[PlannedStage]) -> None:
        """Read what is finished of what these stages start from; raises StageError where it is not as it was written.

        A file that has not changed since it was last read is not read again.
        """
        names = {name for stage in stages for name in stage.taken}
        for name, made in self.finished.items():
            if name in names:
                made.check(self.hashes.of)
        self.hashes.save()

    def _preflight(self, first: str) -> None:
        """Look whether models fit their stages and this machine; raises RecipeError where not."""
        left = self._left()
        if not any(stage.needs or _reads(stage, self.plan) for stage in left):
            return
        open_stages, sharing = [stage.name for stage in left], self._machine.sharing()
        folder = preflight.ask(self.plan, open_stages, self.runs, self.offline, sharing)
        found = preflight.remembered(folder, self.runs)
        if found is None:
            preflight.forget(folder)
            status = self._look(first, folder)
            found = preflight.found_in(folder)
        if found is None:
            problem = f"the plan could not be checked beforehand (exit status {status})"
            here = self._machine.start == "here"
            log = rundir.zygote_log(self.runs) if here else rundir.launch_folders(self.runs)
            self.tell(Warned(first, problem, f"{log} tells why"))
            return
        self.large |= {one["stage"] for one in found.stages if not one["fits"]}
        if self.machine.start == "here" and not self.free[0].gpus:
            self.memory |= {one["stage"]: one["memory"] * self._machine.processes for one in found.stages}
        for one in found.stages:
            self.tell(Estimated(one["stage"], one["seconds"], one["stepping"]))
        self._warn(first, left, found.remarks)
        if found.problems:
            raise RecipeError.of(found.problems)

    def _look(self, first: str, folder: Path) -> int:
        """Have looked at what is asked in a folder, where stages run: in this process, or in one of its own."""
        if self.inline:
            self.tell(Doing(first, IMPORTING))
            set_environment(self.offline)
            preflight.answer(folder)
            return 0
        launcher = self.free[0].launcher
        launcher.start(folder)
        told = self._tell_doing(first, launcher.doing)
        while (status := launcher.status(POLL)) is None:
            doing = preflight.doing_in(folder) if launcher.started else launcher.doing
            told = self._tell_doing(first, doing, told)
        return status

    def _tell_doing(self, stage: str, doing: str, told: str = "") -> str:
        """Report what is done before a stage begins, where that is news; return it."""
        if doing not in ("", told):
            self.tell(Doing(stage, doing))
        return doing or told

    def _warn(self, first: str, left: Sequence[PlannedStage], remarks: Sequence[Problem]) -> None:
        """Report each remark as one of the stage that it names, else of the first that takes the source it names."""
        for remark in remarks:
            stage = next((one.name for one in left if remark.where == f"stage {one.name!r}"), None)
            problem = remark.problem if stage else f"{remark.where}: {remark.problem}"
            taker = next((one.name for one in left if _takes(one, remark.where)), first)
            self.tell(Warned(stage or taker, problem, remark.remedy))

    def _conclude(self, stage: PlannedStage, made: Finished, *, reused: bool) -> None:
        self.tell(
            StageFinished(stage.name, made.method, made.made, str(made.folder), made.seconds, reused, made.results)
        )
        for problem, remedy in doubts(stage, made):
            self.tell(Warned(stage.name, problem, remedy))
        check_gates(stage, made)
        self.finished[stage.name] = made
        self.results[stage.name] = StageResult(
            stage.name, made.method, made.folder, made.results, reused, made.seconds, made.artifact
        )

    def _looks(self, stage: PlannedStage, slot: _Slot) -> Iterator[None]:
        """Finish a stage, a look at a time; observers are told where that fails."""
        try:
            made = yield from self._work(stage, slot)
        except AlignkitError as error:
            self.tell(StageFailed(stage.name, error.problem, error.remedy, error.status))
            raise
        self._conclude(stage, made, reused=False)

    def _work(self, stage: PlannedStage, slot: _Slot) -> Generator[None, None, Finished]:
        assert stage.fingerprint
        partial = rundir.partial_folder(self.runs, stage.name, stage.fingerprint)
        if who := holder_elsewhere(partial):
            self.tell(Doing(stage.name, f"listening for {who}, which has this stage"))
        check_free(partial)
        with self._left_at_once(stage.name):
            self._check_inputs([stage])
        order, status = yield from self._ended(stage, partial, slot)
        if status == 0 and (made := find_finished(self.runs, stage.name, stage.fingerprint)):
            return made
        if self.stop.asked:
            raise StoppedError(stage.name, self.stop.status)
        raise failure_of(order, partial, status)

    def _ended(self, stage: PlannedStage, partial: Path, slot: _Slot) -> Generator[None, None, tuple[Order, int]]:
        """Run a stage to its end, and return its last order and its exit status; what a scheduler ends is started
        again, as often as the machine says."""
        requeues = Requeues(stage.name, partial / rundir.CHECKPOINTS, self._machine.requeues)
        while True:
            order = self._order(stage, slot)
            write_order(partial, order)
            if self.inline:
                return order, self._here(partial, order)
            status = yield from self._apart(partial, order, slot.launcher, stage.method.handles_models)
            if status == 0 or self.stop.asked or not slot.launcher.interrupted:
                return order, status
            self.tell(requeues.next(slot.launcher.interrupted))

    def _order(self, stage: PlannedStage, slot: _Slot) -> Order:
        names, finished, fetched = stage.taken, self.finished, self.fetched or {}
        artifacts = {name: finished[name].artifact if name in finished else fetched[name].artifact for name in names}
        preparations = [fetched[name].preparation for name in names if name in fetched]
        assert stage.fingerprint

        def bounded(role: str, artifact: Artifact) -> Artifact:
            """Return a cost with its bound."""
            constraint = stage.constraints[artifact.name] if role == COSTS else None
            return artifact.model_copy(update={"constraint": constraint}) if constraint else artifact

        return Order(
            attempt=secrets.token_hex(8),
            stage=stage.name,
            method=stage.method.address,
            settings=stage.settings.model_dump(mode="json"),
            inputs={
                role: given(
                    stage.method.consumes[role],
                    [bounded(role, artifacts[name]) for name in several],
                    stage.mix_of(role),
                )
                for role, several in stage.inputs.items()
            },
            made_from={name: finished[name].content for name in names if name in finished},
            seed=stage.seed,
            fingerprint=stage.fingerprint,
            again=rundir.stage_folder(self.runs, stage.name, stage.fingerprint).is_dir(),
            offline=self.offline,
            machine=self._machine.decided(stage.name in self.large),
            gpus=slot.gpus,
            plugin_files=self.plan.plugin_files,
            prepare=tuple(preparation for preparation in preparations if preparation),
        )

    def _here(self, partial: Path, order: Order) -> int:
        """Run a stage in this process."""
        set_environment(self.offline)
        try:
            return work(partial, order, self.stop, quiet=False, heard=self.tell)
        except Exception as error:
            raise error_of(order, partial, explain(error, order, partial)) from error

    def _apart(self, partial: Path, order: Order, launcher: Launcher, models: bool) -> Generator[None, None, int]:
        """Run a stage in a process of its own, and pass on what it tells at each look."""
        watch = StageFollower(order, partial, self.tell)
        launcher.start(partial, models=models)
        told = self._tell_doing(order.stage, launcher.doing)
        asked_at: float | None = None
        while (status := launcher.status(POLL / len(self.working))) is None:
            told = self._tell_doing(order.stage, launcher.doing, told)
            watch.look()
            yield
            if not self.stop.asked:
                continue
            if not launcher.started:
                launcher.kill()
                return self.stop.status
            if asked_at is None:
                self._tell_stopping(order.stage)
                launcher.ask_to_end()
                asked_at = time.monotonic()
            if self.stop.insisted or time.monotonic() > asked_at + PATIENCE:
                launcher.kill()
        watch.end(find_finished(self.runs, order.stage, order.fingerprint) if status == 0 else None)
        return status


def _takes(stage: PlannedStage, where: str) -> bool:
    return any(where == f"source {name!r}" for names in stage.inputs.values() for name in names)


def _reads(stage: PlannedStage, plan: Plan) -> bool:
    """Return whether a stage reads rows of a source by a policy's template."""
    names = stage.taken
    rows = any(name in plan.sources and issubclass(plan.sources[name].kind, Records) for name in names)
    return rows and any(Policy in given.kinds for given in stage.method.consumes.values())
