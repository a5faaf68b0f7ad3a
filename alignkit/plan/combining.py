"""What a stage says of its rewards: whether what it combines can have members, and what it holds out leaves some."""

from collections.abc import Iterator, Mapping, Sequence

from alignkit.contract.kinds import Judge, RewardModel
from alignkit.contract.needs import PackedNeeds, TrainerNeeds
from alignkit.contract.sampling_settings import SamplingSettings
from alignkit.errors import RecipeError
from alignkit.plan.plan import PlannedStage
from alignkit.recipe.recipe import Recipe
from alignkit.sources.source import JudgeOptions, RewardOptions, Source

UNKNOWN = 2
"""So many heads, at least, may a model have of which nobody says how many it has."""


def idle_combinations(
    recipe: Recipe, stages: Sequence[PlannedStage], sources: Mapping[str, Source]
) -> list[RecipeError]:
    """Return what is wrong with stages that combine the members of an ensemble where there cannot be two, or hold out
    all the rewards that they have."""
    made = {stage.name: stage for stage in stages}
    told = [error for stage in stages for error in _held_out(recipe, stage, sources)]
    return told or [error for stage in stages for error in _idle(recipe, stage, made, sources)]


def _held_out(recipe: Recipe, stage: PlannedStage, sources: Mapping[str, Source]) -> Iterator[RecipeError]:
    """Refuse to hold out what has no weight anyhow, and all that there is."""
    if not isinstance(stage.settings, SamplingSettings) or not (held_out := stage.settings.reward.held_out):
        return
    where = recipe.where("stage", stage.name, stage.method.name, "reward", "held_out")
    told, rewards = f"stage {stage.name!r}: {stage.method.name}.reward.held_out", stage.inputs.get("rewards", ())
    for name in (name for name in held_out if name in sources and _weight(sources[name]) == 0):
        yield RecipeError(f"{told} does nothing for {name!r}: its weight is 0", where, "leave it out of one of them")
    if not set(rewards) - set(held_out):
        yield RecipeError(f"{told} leaves nothing to learn from", where, "name further rewards under inputs.rewards")


def _idle(
    recipe: Recipe, stage: PlannedStage, made: Mapping[str, PlannedStage], sources: Mapping[str, Source]
) -> Iterator[RecipeError]:
    if not isinstance(stage.settings, SamplingSettings) or stage.settings.reward.combine == "mean":
        return
    where = recipe.where("stage", stage.name, stage.method.name, "reward", "combine")
    told = f"stage {stage.name!r}: {stage.method.name}.reward.combine = {stage.settings.reward.combine!r} does nothing"
    rewards = stage.inputs.get("rewards", ())
    if any(name in sources and issubclass(sources[name].kind, Judge) for name in rewards):
        yield RecipeError(f"{told}: judges say which answers are better", where, "leave it out")
        return
    counting = [name for name in rewards if name not in stage.settings.reward.held_out]
    heads = {name: most for name in counting if (most := _heads(made.get(name), sources.get(name)))}
    if not heads:
        remedy = "name a reward model under inputs.rewards, or leave combine out"
        yield RecipeError(f"{told}: no reward of the stage is a model whose weight is above 0", where, remedy)
    elif sum(heads.values()) == 1:
        (name,) = heads
        remedy = f"set {name}'s reward.heads = 3, name several reward models, or leave combine out"
        yield RecipeError(f"{told}: {name!r} has one head", where, remedy)


def _heads(stage: PlannedStage | None, source: Source | None) -> int:
    """Return how many members a reward has at most; 0 where it is no reward model, or has a weight that is not above
    0."""
    if source is not None:
        return UNKNOWN if issubclass(source.kind, RewardModel) and _weight(source) > 0 else 0
    if stage is None or not issubclass(stage.made, RewardModel):
        return 0
    needs = stage.needs
    return needs.heads if isinstance(needs, PackedNeeds) else 1 if isinstance(needs, TrainerNeeds) else UNKNOWN


def _weight(source: Source) -> float:
    return source.options.weight if isinstance(source.options, RewardOptions | JudgeOptions) else 1.0
