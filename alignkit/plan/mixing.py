"""Mixes of a recipe: which input a stage's `mix` is about, and whether it can be done."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignkit.contract.kinds import Artifact, Records, Text
from alignkit.contract.method import Method
from alignkit.contract.mix import NAMING, SLACK, Mix, counts
from alignkit.contract.needs import Needs, RowNeeds, SamplingNeeds, can_mix
from alignkit.contract.settings import Settings
from alignkit.errors import RecipeError, near_miss
from alignkit.plan.plan import PlannedStage
from alignkit.plan.wiring import Wires
from alignkit.recipe.recipe import Recipe
from alignkit.recipe.toml import Keys
from alignkit.recipe.validate import read_settings
from alignkit.sources.source import RecordOptions, Source


def read_mix(recipe: Recipe, stage: str) -> Mix | None:
    """Read a stage's mix; None where it has none. Raises RecipeError with all that is wrong with it by itself."""
    table = recipe.stages[stage].get("mix")
    if table is None:
        return None
    if not isinstance(table, dict):
        where = recipe.where("stage", stage, "mix")
        raise RecipeError(f"stage {stage!r}: mix must be a table", where, "write mix.weights = { NAME = 3, NAME = 1 }")

    def find(keys: Keys) -> tuple[str, str]:
        return recipe.where("stage", stage, "mix", *keys), f"stage {stage!r}: {'.'.join(['mix', *keys])}"

    return read_settings(Mix, table, find, recipe.typed("stage", stage, "mix"))


@dataclass(frozen=True)
class Mixing:
    """A mix with the stage that it stands in."""

    recipe: Recipe
    stage: str
    mix: Mix
    method: Method
    needs: Needs | None
    wires: Wires

    @property
    def role(self) -> str | None:
        """The one input of rows; None where there is none, or several."""
        roles = [role for role in self.wires if _takes_rows(self.method, role)]
        return roles[0] if len(roles) == 1 else None

    @property
    def stands_by(self) -> bool:
        """It names sources, and all of them are inputs of another method of this stage."""
        known = {*self.recipe.sources, *self.recipe.stages}
        taken = {name for names in self.wires.values() for name in names}
        return bool(self.mix.named) and not taken & {*self.mix.named} and known.issuperset(self.mix.named)

    def problems(self, sources: Mapping[str, Source], made: Mapping[str, type[Artifact]]) -> Iterator[RecipeError]:
        """Yield what is wrong with it in this stage."""
        method, role = self.method.name, self.role
        if not can_mix(self.needs):
            yield self._wrong(f"{method} reads rows in an order of its own, and cannot mix them", "leave mix out")
        elif role is None:
            yield self._wrong(f"{method} does not take one input of rows that could be mixed", "leave mix out")
        else:
            names = self.wires[role]
            yield from self._unknown(names, role)
            yield from self._one_way(names)
            yield from self._of_epochs()
            yield from self._of_order([(name, sources.get(name), made.get(name)) for name in names])

    def _wrong(self, problem: str, remedy: str, *keys: str) -> RecipeError:
        where = self.recipe.where("stage", self.stage, "mix", *keys)
        return RecipeError(f"stage {self.stage!r}: {'.'.join(['mix', *keys])}: {problem}", where, remedy)

    def _unknown(self, names: Sequence[str], role: str) -> Iterator[RecipeError]:
        for way in NAMING:
            for name in (name for name in getattr(self.mix, way) if name not in names):
                hint = near_miss(name, names) or f"it takes {', '.join(names)}"
                yield self._wrong(f"{name!r} is not among what {self.method.name} takes as {role}", hint, way, name)

    def _one_way(self, names: Sequence[str]) -> Iterator[RecipeError]:
        mix, way = self.mix, next(iter(self.mix.ways), None)
        if way and len(names) == 1:
            remedy = f"name the others under inputs.{self.role}, or leave it out"
            yield self._wrong(f"there is one source, {names[0]!r}, so nothing is mixed", remedy, way)
            return
        left = [name for name in names if name not in mix.named]
        if mix.weights and left:
            listed = " and ".join(map(repr, left))
            yield self._wrong(f"{listed} {'has' if len(left) == 1 else 'have'} no weight", "0 leaves it out", "weights")
        total = sum(mix.shares.values())
        if mix.shares and not left and total < 1 - SLACK:
            problem = f"shares of all sources sum to {total:g}, and must sum to 1"
            yield self._wrong(problem, "leave one of them out, and it gets the rest", "shares")
        if mix.shares and left and total > 1 - SLACK:
            problem = f"shares sum to 1, and leave nothing for {' and '.join(map(repr, left))}"
            yield self._wrong(problem, "lower them, or give it the share 0, to be measured only", "shares")

    def _of_epochs(self) -> Iterator[RecipeError]:
        if not self.mix.epochs:
            return
        if isinstance(self.needs, SamplingNeeds):
            problem = f"{self.method.name} asks as many prompts as its updates need, whatever their number"
            yield self._wrong(problem, "write weights or shares", "epochs")
        table = self.recipe.stages[self.stage].get(self.method.name)
        if isinstance(table, dict) and "epochs" in table:
            problem = f"it says how often rows are read, and so does {self.method.name}.epochs"
            yield self._wrong(problem, "leave one of them out", "epochs")

    def _of_order(self, given: Sequence[tuple[str, Source | None, type[Artifact] | None]]) -> Iterator[RecipeError]:
        column = self.mix.order
        for name, source, made in given if column else ():
            kind = source.kind if source else made
            if kind and issubclass(kind, Text):
                yield self._wrong("texts are cut into blocks, which have no order", "leave it out", "order")
                return
            if source and isinstance(source.options, RecordOptions) and column not in _kept(source, source.options):
                problem = f"source {name!r} does not keep the column {column!r}"
                yield self._wrong(problem, f'write sources.{name}.keep = ["{column}"]', "order")


def _takes_rows(method: Method, role: str) -> bool:
    given = method.consumes[role]
    return not given.several and all(issubclass(kind, Records) for kind in given.kinds)


def _kept(source: Source, options: RecordOptions) -> set[str]:
    """Return the columns that rows of a source surely have, or may have by their kind."""
    kind = source.kind
    assert issubclass(kind, Records)
    return {*options.keep, *kind.further, *(column for columns in kind.columns for column in columns)}


def once(settings: Settings) -> Settings:
    """Return settings of a stage whose mix says how often rows are read: an epoch of it is all."""
    return settings.model_copy(update={"epochs": 1.0})


class SourceReading(NamedTuple):
    """How much a stage reads of a source, from its first step to its last."""

    rows: int
    epochs: float
    """How often each row of it, in the mean."""


def readings(stage: PlannedStage, rows: Mapping[str, int]) -> dict[str, SourceReading]:
    """Return what a stage reads of each source of its mix, of which these rows are known to learn from.

    Empty where it has no mix, where a source's rows are not known, or where what is mixed is blocks of text.
    """
    role = next((role for role in stage.inputs if stage.mix_of(role)), None)
    names = stage.inputs[role] if role else ()
    if stage.mix is None or not role or not names or not rows.keys() >= {*names} or _of_blocks(stage, role):
        return {}
    wanted, needs = counts(stage.mix, {name: rows[name] for name in names}), stage.needs
    times = needs.epochs if isinstance(needs, RowNeeds) else 1.0
    if isinstance(needs, SamplingNeeds):
        times = needs.updates * needs.batch / needs.answers / sum(wanted.values())
    return {
        name: SourceReading(round(times * count), times * count / max(1, rows[name])) for name, count in wanted.items()
    }


def _of_blocks(stage: PlannedStage, role: str) -> bool:
    return any(issubclass(kind, Text) for kind in stage.method.consumes[role].kinds)
