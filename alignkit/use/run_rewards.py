"""What scores answers in a kept run: its reward models, and the rewards among its sources."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkit.contract.kinds import Reward, kinds_by_name
from alignkit.contract.reward_function import Answer, Score
from alignkit.errors import AlignkitError, StageError
from alignkit.plan.plan import Plan
from alignkit.plan.planner import plan_recipe
from alignkit.plugins import Plugins, load_plugins
from alignkit.recipe.recipe import dotted, recipe_of
from alignkit.sources.fetch import fetch
from alignkit.store import rundir
from alignkit.store.runs import KeptRun
from alignkit.training.opening import open_reward

UNSCORED = (AlignkitError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a reward raises at an answer that it cannot score, such as one whose row lacks a column that it looks at."""


@dataclass(frozen=True)
class OpenReward:
    """A reward of a run, ready to score."""

    name: str
    score: Score


@dataclass(frozen=True)
class ClosedReward:
    """A reward of a run that cannot be opened, and why."""

    name: str
    reason: str


def plan_again(run: KeptRun, runs: Path, plugins: Plugins | None = None, until: str | None = None) -> Plan:
    """Plan a kept run's recipe, with what was changed of it and its seed. Raises what planning raises."""
    files = [Path(file) for file in run.plan["plugin_files"]]
    changes = {dotted(tuple(key.split("."))): value for key, value in run.overrides.items()}
    read = recipe_of(Path(run.plan["path"]), run.recipe_text, changes)
    return plan_recipe(read, plugins or load_plugins(files), runs=runs, until=until, files=files)


def rewards_of(run: KeptRun, offline: bool = True) -> Iterator[OpenReward | ClosedReward]:
    """Open the rewards of a run one by one: those that its stages have made, and those among its sources."""
    plugins = load_plugins([Path(file) for file in run.plan["plugin_files"]])
    cache = rundir.cache_folder(run.runs)
    for name in _named(run):
        try:
            reward = _reward(run, name, plugins, offline)
            yield OpenReward(name, open_reward(reward, plugins, cache=cache))
        except UNSCORED as error:
            yield ClosedReward(name, str(error))


def _named(run: KeptRun) -> list[str]:
    """Name the rewards of a run: what its stages have made first."""
    kinds = kinds_by_name()
    made = [stage.name for stage in run.stages if stage.wanted and issubclass(kinds[stage.makes], Reward)]
    return made + [source.name for source in run.sources if issubclass(kinds[source.kind], Reward)]


def _reward(run: KeptRun, name: str, plugins: Plugins, offline: bool) -> Reward:
    if any(stage.name == name for stage in run.stages):
        found = run.artifact(name)
    else:
        source = plan_again(run, run.runs, plugins).sources[name]
        fetched = fetch([source], run.runs, offline)[name]
        found = fetched.artifact
    if not isinstance(found, Reward):
        raise StageError(f"{name} is a {type(found).__name__}, and no reward")
    return found


def columns_kept(run: KeptRun) -> list[str]:
    """Return the columns that the run's sources keep for rewards."""
    sources = run.plan["sources"].values()
    return list(dict.fromkeys(column for one in sources for column in one["options"].get("keep", ())))


def scored(rewards: Sequence[OpenReward], answers: Sequence[Answer]) -> dict[str, list[float] | str]:
    """Return each reward's scores of these answers, or why it gives none."""
    found: dict[str, list[float] | str] = {}
    for reward in rewards:
        try:
            found[reward.name] = reward.score(answers)
        except UNSCORED as error:
            found[reward.name] = f"{type(error).__name__}: {error}"
    return found
