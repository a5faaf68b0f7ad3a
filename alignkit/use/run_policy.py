"""A policy of a kept run, by the name that commands give it, and how it was asked while it was trained."""

from dataclasses import dataclass, replace
from pathlib import Path

from alignkit.contract.kinds import Policy, kinds_by_name
from alignkit.data.values import Form
from alignkit.errors import StageError, near_miss
from alignkit.plugins import load_plugins
from alignkit.store.runs import KeptRun, KeptStage, find_run


@dataclass(frozen=True)
class RunPolicy:
    """A policy of a run."""

    run: KeptRun
    stage: KeptStage
    policy: Policy
    form: Form
    """`chat`: it learnt from chats, and is asked by its template; `plain`: from text as it stands."""

    @property
    def name(self) -> str:
        """By which commands name it."""
        return f"{self.run.id}:{self.stage.name}"


def find_policy(name: str, runs: Path) -> RunPolicy:
    """Find the policy that `RUN:STAGE` names; without a stage that of the last stage which has made one.

    Raises RecipeError where there is no such run, and StageError where it has no such policy.
    """
    named, _, stage = name.partition(":")
    run = replace(find_run(named, runs), load_plugins=load_plugins)
    load_plugins([Path(file) for file in run.plan.get("plugin_files", ())])
    return policy_of(run, stage)


def policy_of(run: KeptRun, name: str = "") -> RunPolicy:
    """Return the policy that a stage of a run has made; without a name that of the last stage which has made one."""
    made = [stage for stage in run.stages if stage.wanted and _makes_policy(stage)]
    there = [stage for stage in made if stage.facts and not stage.remade]
    names, name = [stage.name for stage in made], run.last_round(name)
    if not made or (not name and not there):
        raise StageError("no stage of this run has made a policy", run.id, "take another run, or finish this one")
    if name and name not in names:
        hint = near_miss(name, names) or f"those that do are {', '.join(names)}"
        raise StageError(f"no stage {name!r} of this run makes a policy", run.id, hint)
    stage = run.stage(name) if name else there[-1]
    policy = run.artifact(stage.name)
    assert isinstance(policy, Policy)
    return RunPolicy(run, stage, policy, form_of_stage(run, stage))


def _makes_policy(stage: KeptStage) -> bool:
    kind = kinds_by_name().get(stage.makes)
    return kind is not None and issubclass(kind, Policy)


def form_of_stage(run: KeptRun, stage: KeptStage) -> Form:
    """Return how a stage asked its policy: as its rows are, else as the policy was that it started from.

    A stage tells it itself; of those that versions before have made, what was found in their sources does.
    """
    told: Form | None = stage.facts.get("form")
    if told:
        return told
    names = [name for names in stage.inputs.values() for name in names]
    found = [bool(run.audits[name]["chats"]) for name in names if name in run.audits]
    stages = [run.stage(name) for name in names if name not in {source.name for source in run.sources}]
    if not found:
        found = [form_of_stage(run, before) == "chat" for before in stages]
    return "chat" if any(found) else "plain"
