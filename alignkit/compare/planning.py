"""A comparison as a recipe: every variant under every seed is a stage of its own, and one `evaluate` measures them all.

The recipe is made in memory from the user's, so that planning, reuse and running are those of every other recipe: what
the variants share is one stage, and runs once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.compare.asked import asked_of
from alignkit.compare.variants import Variant, VariantRequest, compared_stage, digest, stage_names, variants_of
from alignkit.contract.constraint import COSTS
from alignkit.contract.kinds import Policy, Prompts, Reward, Scores
from alignkit.contract.names import NAME
from alignkit.contract.sampling_settings import SamplingSettings
from alignkit.errors import AlignkitError, RecipeError
from alignkit.plan.costs import KEY as CONSTRAINTS
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.plan.planner import plan_recipe
from alignkit.plugins import Plugins, load_plugins
from alignkit.recipe.fingerprint import stage_seed
from alignkit.recipe.packaged import find_recipe
from alignkit.recipe.recipe import Recipe, combine, read_recipe
from alignkit.recipe.self_checks import SelfChecks
from alignkit.recipe.toml import Keys

EVALUATE = "evaluate"
"""The method that measures."""
SCORES = "scores"
"""The stage that measures, where the recipe has none."""


@dataclass(frozen=True)
class Contender:
    """A variant and the stages that run it, one for each seed."""

    variant: Variant
    stages: tuple[str, ...]
    own: tuple[Mapping[str, str], ...] = ()
    """For each seed the stages that are its own, by their names in the recipe: of one that repeats all rounds."""


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison runs: a plan like any other, and what its stages mean."""

    plan: Plan
    stage: str
    """The one of the recipe that is compared."""
    start: str
    """The policy that all variants start from: a source or a stage."""
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    scores: str
    """The stage that measures."""
    deciding: tuple[str, ...]
    """The rewards that decide which variant is best."""
    trained: frozenset[str]
    """The rewards that a variant learns from."""


class Ground(NamedTuple):
    """What recipes are planned with."""

    plugins: Plugins
    runs: Path
    files: tuple[Path, ...]

    def plan(self, recipe: Recipe) -> Plan:
        return plan_recipe(recipe, self.plugins, runs=self.runs, files=self.files)


def plan_comparison(
    recipe: str | Path,
    asked: VariantRequest,
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002  # the word of the command line
    seed: int | None = None,
    runs: str | Path = "runs",
    plugins: Sequence[str | Path] = (),
) -> ComparisonPlan:
    """Plan a comparison. Raises RecipeError, DataError or PluginError, each with all that is wrong."""
    files, folder = tuple(Path(file) for file in plugins), Path(runs)
    base, loaded = read_recipe(find_recipe(recipe), set, seed), load_plugins(files, examined=False)
    if base.errors:
        raise combine(base.errors)
    asked = asked_of(base, asked)
    stage = compared_stage(base, loaded, asked)
    variants = variants_of(base, loaded, asked, stage)
    _check_policies(base, loaded, stage, variants)
    ground = Ground(loaded, folder, files)
    planned = _plan_each(variants, base, ground, set or {}, seed)
    start = _common_start(base, stage, variants, planned)
    _refuse_twins(variants, planned, stage)
    return _Writer(base, stage, start, variants, planned, asked.seeds or 1, asked.rewards).write(ground)


def _check_policies(base: Recipe, loaded: Plugins, stage: str, variants: Sequence[Variant]) -> None:
    """Refuse methods that make something else, before it is told what else does not fit them."""
    for variant in variants:
        method = loaded.methods.get(variant.method)
        if method and not issubclass(method.produces, Policy):
            given = f"{stage}.method" in variant.changes
            raise RecipeError(
                f"stage {stage!r}: {method.name} makes {method.produces.__name__}, and only policies are compared",
                variant.where(f"{stage}.method") if given else base.where("stage", stage),
                "choose another with --stage or --methods",
            )


def _plan_each(
    variants: Sequence[Variant],
    base: Recipe,
    ground: Ground,
    changes: Mapping[str, Any],
    seed: int | None,
) -> list[Plan]:
    """Plan the recipe once for each variant, so that every mistake is told where it was made."""
    plans: list[Plan] = []
    errors: list[AlignkitError] = []
    for variant in variants:
        try:
            read = read_recipe(base.path, {**changes, **variant.changes}, seed)
            plans.append(ground.plan(read))
        except AlignkitError as error:
            errors.append(type(error).of([variant.blamed(problem) for problem in error.problems]))
    if errors:
        raise combine(errors)
    return plans


def _common_start(base: Recipe, stage: str, variants: Sequence[Variant], planned: Sequence[Plan]) -> str:
    """Find the policy that the variants start from: what wins are counted against, and KL is measured from."""
    starts: dict[str, str] = {}
    where = base.where("stage", stage)
    for variant, plan in zip(variants, planned, strict=True):
        made = next(iter(_rounds_of(plan, stage)), _compared(plan, stage))
        roles = [role for role, taken in made.method.consumes.items() if role in made.inputs and taken.takes(Policy)]
        role = "policy" if "policy" in roles else next(iter(roles), None)
        if role is None:
            problem = f"stage {stage!r}: {made.method.name} starts from no policy, so there is nothing to measure from"
            raise RecipeError(problem, where, "compare methods that take a policy")
        starts.setdefault(made.inputs[role][0], variant.label)
    if len(starts) > 1:
        found = " and ".join(f"{label} from {start!r}" for start, label in starts.items())
        problem = f"stage {stage!r}: the variants start from different policies: {found}"
        raise RecipeError(problem, where, "let all start from one, under inputs")
    return next(iter(starts))


def _compared(plan: Plan, stage: str) -> PlannedStage:
    """Return the stage that is measured; of one that repeats its last round."""
    return plan.stage(plan.recipe.last_round(stage))


def _rounds_of(plan: Plan, stage: str) -> list[PlannedStage]:
    """Return all rounds of a stage; none where its name is that of one stage."""
    return [one for one in plan.stages if (of := plan.recipe.rounds.get(one.name)) and of.stage == stage]


def _own_stages(plan: Plan, stage: str) -> list[PlannedStage]:
    """Return what a variant has of its own: the compared stage; of one that repeats all that its rounds are made of."""
    last = _compared(plan, stage)
    if last.name == stage:
        return [last]
    repeat, needed = plan.recipe.rounds[last.name].repeat, {last.name}
    for one in reversed(plan.stages):
        needed.update(one.taken if one.name in needed else ())
    rounds = plan.recipe.rounds
    return [
        one for one in plan.stages if one.name in needed and one.name in rounds and rounds[one.name].repeat == repeat
    ]


def _refuse_twins(variants: Sequence[Variant], planned: Sequence[Plan], stage: str) -> None:
    made = [list(map(_alike, _own_stages(plan, stage))) for plan in planned]
    for number, (variant, stages) in enumerate(zip(variants, made, strict=True)):
        for other, twins in zip(variants[:number], made[:number], strict=True):
            if stages == twins:
                raise RecipeError(
                    f"stage {stage!r}: the variants {other.label!r} and {variant.label!r} are the same",
                    variant.brought,
                    "leave one out, or vary a setting that the method has",
                )


def _takes_prompts(stage: PlannedStage, role: str) -> bool:
    return stage.method.consumes[role].kinds == (Prompts,)


def _alike(stage: PlannedStage) -> tuple[object, ...]:
    return stage.method.name, stage.settings.model_dump_json(), stage.inputs, stage.constraints, stage.mix


def _named_after(final: str, last: str, stage: str) -> str:
    """Return what a variant calls one of its own stages: the last one by the variant's name, the others after it."""
    name = f"{final}-{stage}"
    return final if stage == last else name if NAME.fullmatch(name) else f"{stage[:20]}-{digest(name)}"


@dataclass(frozen=True)
class _Writer:
    """Writes the recipe of a comparison from the plans of its variants."""

    base: Recipe
    stage: str
    start: str
    variants: Sequence[Variant]
    planned: Sequence[Plan]
    count: int
    """Of seeds."""
    measured: Sequence[str]
    """Rewards that are measured besides those that decide; none: all that variants learn from."""

    def write(self, ground: Ground) -> ComparisonPlan:
        contenders, seeds = self._contenders(), self._seeds()
        measuring = self._measuring()
        trained, deciding = self._trained(), self._deciding(measuring)
        scores = measuring.name if measuring else self._free(SCORES)
        stages = {
            **dict(self._shared(measuring)),
            **{
                name: table
                for k in range(self.count)
                for contender, plan in zip(contenders, self.planned, strict=True)
                for name, table in self._tables(plan, contender.own[k], k)
            },
            scores: self._scores(contenders, measuring, deciding, trained),
        }
        others = dict(self._other_measures(contenders))
        stages |= others
        overrides = {**self.base.overrides, **{k: v for c in contenders for k, v in self._moved(c)}}
        name = f"{self.base.name}-compare"
        sources = {name: table for plan in self.planned for name, table in self._sources(plan).values()}
        recipe = replace(
            self.base,
            name=name,
            sources=sources,
            stages=stages,
            result=(scores, *others),
            overrides=overrides,
            checks=SelfChecks(),
        )
        plan = self._plan(recipe, scores, measuring is None, ground)
        decides = deciding or plan.stage(scores).inputs["rewards"]
        return ComparisonPlan(
            plan, self.stage, self.start, contenders, seeds, scores, tuple(decides), frozenset(trained)
        )

    def _plan(self, recipe: Recipe, scores: str, added: bool, ground: Ground) -> Plan:
        try:
            return ground.plan(recipe)
        except RecipeError as error:
            if not added:
                raise
            remedy = f'say how to measure: add [stage.{scores}] with method = "{EVALUATE}"'
            problems = [replace(p, where=recipe.path.name, remedy=f"{p.remedy}; or {remedy}") for p in error.problems]
            raise RecipeError.of(problems) from error

    def _seeds(self) -> tuple[int, ...]:
        """Return the stage's own seed, and others that are derived from it."""
        own = _compared(self.planned[0], self.stage).seed
        return tuple(self._seed(own, k) for k in range(self.count))

    def _seed(self, own: int, k: int) -> int:
        return stage_seed(own, f"{self.stage}/{k + 1}") if k else own

    def _sources(self, plan: Plan) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """Return a variant's sources by their names in its recipe; what another variant has otherwise is renamed."""
        first = {name: table for other in self.planned for name, table in other.recipe.sources.items()}
        first |= self.base.sources
        return {
            name: (name if table == first[name] else f"{name}-{digest(repr(table))}", table)
            for name, table in plan.recipe.sources.items()
        }

    def _contenders(self) -> tuple[Contender, ...]:
        """Name the stages; the recipe's own variant keeps its name, so that what `recipe` has run is reused."""
        taken = [*self.base.sources, *self.base.stages]
        found = []
        for variant, plan, name in zip(self.variants, self.planned, stage_names(self.variants, taken), strict=True):
            last, own = _compared(plan, self.stage).name, [one.name for one in _own_stages(plan, self.stage)]
            same = plan.recipe.repeats == self.base.repeats
            same = same and all(plan.recipe.stages[one] == self.base.stages[one] for one in own)
            finals = (last if same else f"{name}-s1", *(f"{name}-s{number}" for number in range(2, self.count + 1)))
            named = [
                {one: one if same and not k else _named_after(final, last, one) for one in own}
                for k, final in enumerate(finals)
            ]
            found.append(Contender(variant, finals, tuple(named)))
        return tuple(found)

    def _free(self, name: str) -> str:
        taken = [*self.base.sources, *self.base.stages]
        return next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)

    def _measuring(self) -> PlannedStage | None:
        """Find the recipe's own stage that evaluates: its settings, prompts and rewards are taken over."""
        stages = [stage for stage in self.planned[0].stages if stage.method.name == EVALUATE]
        return stages[-1] if stages else None

    def _shared(self, measuring: PlannedStage | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the stages that no variant changes, wired as the recipe wires them; whoever needs them runs them."""
        first = self.planned[0]
        changed = {*(one.name for one in _own_stages(first, self.stage)), measuring.name if measuring else ""}
        for stage in first.stages:
            if stage.name in changed or changed & set(stage.taken):
                changed.add(stage.name)
            else:
                yield stage.name, self._wired(stage, first.recipe.stages[stage.name])

    def _tables(self, plan: Plan, own: Mapping[str, str], k: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Write one variant's stages under one seed. Gates would stop the comparison at the first one that misses."""
        names = {**{old: new for old, (new, _) in self._sources(plan).items()}, **own}
        for old, new in own.items():
            table = self._wired(plan.stage(old), plan.recipe.stages[old])
            inputs = {role: [names.get(name, name) for name in several] for role, several in table["inputs"].items()}
            kept = {key: value for key, value in table.items() if key != "gates"}
            if mix := plan.stage(old).mix:
                kept["mix"] = mix.renamed(names).model_dump(mode="json", exclude_unset=True)
            if CONSTRAINTS in kept:
                kept[CONSTRAINTS] = {names.get(name, name): bounds for name, bounds in kept[CONSTRAINTS].items()}
            yield new, {**kept, "inputs": inputs, "seed": self._seed(plan.stage(old).seed, k)}

    def _wired(self, stage: PlannedStage, table: Mapping[str, Any]) -> dict[str, Any]:
        inputs = {role: list(names) for role, names in stage.inputs.items() if role != COSTS}
        return {**table, "method": stage.method.name, "inputs": inputs}

    def _trained(self) -> list[str]:
        """Name the rewards that variants learn from, but for those of their own, and those that only ride along."""
        found: dict[str, None] = {}
        for plan in self.planned:
            made, own = _compared(plan, self.stage), {one.name for one in _own_stages(plan, self.stage)}
            settings = made.settings
            aside = {*own, *(settings.reward.held_out if isinstance(settings, SamplingSettings) else ())}
            aside |= {name for name, one in plan.sources.items() if getattr(one.options, "weight", 1) == 0}
            for role, names in made.inputs.items():
                if any(issubclass(kind, Reward) for kind in made.method.consumes[role].kinds):
                    found |= dict.fromkeys(name for name in names if name not in aside)
        return list(found)

    def _deciding(self, measuring: PlannedStage | None) -> list[str]:
        """Name the rewards that decide: the recipe's own measure, else those nobody learns from, else those some do."""
        if measuring:
            return measuring.settings.model_dump()["deciding"] or list(measuring.inputs["rewards"])
        trained = self._trained()
        sources = self.planned[0].sources.values()
        apart = [one.name for one in sources if issubclass(one.kind, Reward) and one.name not in trained]
        return apart or trained

    def _scores(
        self,
        contenders: Sequence[Contender],
        measuring: PlannedStage | None,
        deciding: Sequence[str],
        trained: Sequence[str],
    ) -> dict[str, Any]:
        """Write the stage that measures: the start first, then every variant under every seed."""
        own = self.planned[0].recipe.stages[measuring.name] if measuring else {}
        asked = measuring.inputs["rewards"] if measuring else ()
        rewards = list(dict.fromkeys([*deciding, *asked, *(self.measured or trained)]))
        prompts = measuring.inputs["prompts"] if measuring else self._prompts()
        policies = [self.start, *(name for contender in contenders for name in contender.stages)]
        inputs = {"policies": policies, "rewards": rewards, "prompts": list(prompts)}
        told = {**own.get(EVALUATE, {}), **({"deciding": list(deciding)} if deciding else {})}
        if isinstance(ceiling := told.get("ceiling"), Mapping):  # it is that of the start, which stands first here
            told["ceiling"] = {key: value for key, value in ceiling.items() if key != "start"}
        kept = {key: value for key, value in own.items() if key not in ("gates", EVALUATE)}
        return {**kept, "method": EVALUATE, "inputs": {k: v for k, v in inputs.items() if v}, EVALUATE: told}

    def _other_measures(self, contenders: Sequence[Contender]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the recipe's other stages that measure several policies, the compared one among them: what they
        measure of it, they measure of the start and of every variant."""
        variants = [name for contender in contenders for name in contender.stages]
        first, last = self.planned[0], _compared(self.planned[0], self.stage).name
        for stage in first.stages:
            roles = [role for role, names in stage.inputs.items() if last in names]
            if stage.method.name == EVALUATE or not stage.wanted or not issubclass(stage.made, Scores) or not roles:
                continue
            if stage.method.consumes[roles[0]].several:
                table = self._wired(stage, first.recipe.stages[stage.name])
                inputs = {**table["inputs"], roles[0]: [self.start, *variants]}
                yield stage.name, {**{k: v for k, v in table.items() if k != "gates"}, "inputs": inputs}

    def _prompts(self) -> tuple[str, ...]:
        """Return the prompts that a variant learns from, if one does: their held-out side is what is asked."""
        made = [stage for plan in self.planned for stage in reversed(_own_stages(plan, self.stage))]
        asked = (names for one in made for role, names in one.inputs.items() if _takes_prompts(one, role))
        return next(asked, ())

    def _moved(self, contender: Contender) -> Iterator[tuple[Keys, Any]]:
        """Yield a variant's stages the overrides of the stage that it is made from, as they were typed."""
        mine = {("stage", *key.split(".")): value for key, value in contender.variant.changes.items()}
        for path, value in {**self.base.overrides, **mine}.items():
            for own in contender.own if path[0] == "stage" else ():
                for old, new in own.items():
                    if path[1] in (old, self.base.stage_in_file(old)):
                        yield ("stage", new, *path[2:]), value
