"""What would become of each stage if the recipe ran now, in words."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from alignkit.contract.kinds import Records
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.run.reuse import reusable, run_again
from alignkit.show.planned import mixes_in_words, state_of
from alignkit.sources.audit import Audit
from alignkit.sources.audited import known
from alignkit.store import rundir
from alignkit.store.checkpoints import steps
from alignkit.store.results import Finished

TOLD = ("torch", "transformers", "trl", "peft")
"""The libraries whose versions are worth a remark: a result may differ with them, and it is reused all the same."""


def states_of(plan: Plan, runs: Path, again: Sequence[str] = ()) -> tuple[dict[str, str], dict[str, str]]:
    """Return each stage's state, and a remark on those that are reused although a library has changed since, and on
    those to come that mix sources whose rows are known.

    Raises RecipeError where `again` names no stage that would run.
    """
    again = run_again(plan, again)
    reused = reusable(plan, runs, again)
    states = {stage.name: _state(stage, runs, again, reused) for stage in plan.stages}
    remarks = {name: remark for name, found in reused.items() if (remark := _remark(name, found))}
    mixed = mixes_in_words(plan, known_audits(plan, runs)).items()
    return states, remarks | {name: words for name, words in mixed if name not in reused}


def known_audits(plan: Plan, runs: Path) -> dict[str, Audit]:
    """Return what was found in each source of rows, where it was looked at before."""
    cache = rundir.cache_folder(runs)
    sources = [source for source in plan.used_sources() if issubclass(source.kind, Records)]
    return {source.name: audit for source in sources if (audit := known(source, cache))}


def _state(stage: PlannedStage, runs: Path, again: Sequence[str], reused: Mapping[str, Finished]) -> str:
    if not stage.wanted or stage.fingerprint is None:
        return state_of(stage)
    if stage.name in reused:
        return f"finished {stage.fingerprint[: rundir.SHORT]}"
    partial = rundir.partial_folder(runs, stage.name, stage.fingerprint)
    step = next(steps(partial / rundir.CHECKPOINTS), None)
    if step is not None:
        return f"resumes at step {step}"
    if rundir.stage_folder(runs, stage.name, stage.fingerprint).is_dir():
        return "will run again" if stage.name in again else "will run again, inputs made anew"
    return "will run"


def _remark(name: str, found: Finished) -> str:
    changed = ", ".join(_changes(found.facts.get("versions", {})))
    return f"reused, made with {changed}; --again {name} reruns" if changed else ""


def _changes(versions: Mapping[str, str]) -> Iterator[str]:
    for library in TOLD:
        try:
            now = version(library)
        except PackageNotFoundError:
            continue
        if library in versions and versions[library] != now:
            yield f"{library} {versions[library]}, now {now}"
