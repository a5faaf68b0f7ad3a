"""Make a plan of a recipe: everything that can be known, and refused, without importing anything heavy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from math import inf, isfinite
from pathlib import Path
from typing import Any

from alignkit.contract.kinds import Artifact
from alignkit.contract.method import Method
from alignkit.contract.settings import SHARED, Settings, identity, merged
from alignkit.errors import AlignkitError, RecipeError, near_miss
from alignkit.plan.combining import idle_combinations
from alignkit.plan.costs import constraints_of, idle_weights
from alignkit.plan.figures import unmade_figures
from alignkit.plan.inactive import standing_by
from alignkit.plan.input_names import name_inputs
from alignkit.plan.mixing import Mixing, once, read_mix
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.plan.presets import over_preset
from alignkit.plan.repeated import (
    check_rounds,
    in_round,
    parts_in_round,
    parts_of_rounds,
    refused_reference,
    renamed_gates,
    told_once,
)
from alignkit.plan.wiring import Offers, Wires, wire
from alignkit.plugins import Plugins, load_plugins
from alignkit.recipe.fingerprint import code_identity, digest, stage_fingerprint, stage_seed
from alignkit.recipe.other_names import other_name
from alignkit.recipe.packaged import find_recipe
from alignkit.recipe.recipe import Recipe, combine, read_recipe
from alignkit.recipe.requires import chosen_trackers, missing_packages
from alignkit.recipe.toml import Keys
from alignkit.recipe.validate import read_settings
from alignkit.sources.lock_file import lock_path, read_lock
from alignkit.sources.reading import read_sources
from alignkit.sources.source import Source
from alignkit.store import rundir
from alignkit.store.file_hashes import FileHashes


def make_plan(
    recipe: str | Path,
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002  # the word of the command line
    seed: int | None = None,
    runs: str | Path = "runs",
    until: str | None = None,
    plugins: Sequence[str | Path] = (),
) -> Plan:
    """Plan a recipe, with overrides such as {"align.method": "dpo"}.

    Raises RecipeError, DataError or PluginError, each with all that is wrong.
    """
    read = read_recipe(find_recipe(recipe), set, seed)
    files = tuple(Path(file) for file in plugins)
    return plan_recipe(read, load_plugins(files, examined=False), runs=Path(runs), until=until, files=files)


def plan_recipe(
    read: Recipe, loaded: Plugins, *, runs: Path, until: str | None = None, files: Sequence[Path] = ()
) -> Plan:
    """Plan a recipe that has been read, with plugins that have been loaded, those of `files` among them."""
    if missing := list(missing_packages(read)):
        raise combine([*read.errors, *missing])
    hashes = FileHashes(rundir.file_hashes(runs))
    sources, errors = read_sources(read, loaded, hashes, read_lock(lock_path(read.path, runs)))
    hashes.save()
    planner = _Planner(read, loaded, sources)
    stages = [stage for name in read.stages if (stage := planner.plan(name))]
    until = read.last_round(until) if until else None
    goals = [*_check_defaults(read, loaded), *_check_goals(read, until)]
    trackers, unknown = chosen_trackers(read, loaded)
    planned = told_once(planner.errors, read) or [
        *check_rounds(read, stages),
        *idle_weights(read, stages),
        *idle_combinations(read, stages, sources),
        *(unmade_figures(read, stages) if not read.checks.compare and not read.overrides else ()),
    ]
    if wrong := [*read.errors, *errors, *planned, *goals, *unknown]:
        raise combine(wrong)
    wanted = _wanted(read, until, stages)
    marked = tuple(replace(stage, wanted=stage.name in wanted) for stage in stages)
    return Plan(read, marked, sources, loaded, tuple(file.resolve() for file in files), tuple(trackers))


class _Planner:
    """Plans stage after stage; remembers what earlier ones make and what is wrong."""

    def __init__(self, recipe: Recipe, plugins: Plugins, sources: Mapping[str, Source]) -> None:
        self.recipe, self.plugins, self.sources = recipe, plugins, sources
        self.kinds = {name: source.kind for name, source in sources.items()}
        self.parts = parts_of_rounds(recipe)
        self.errors: list[AlignkitError] = []
        self.made: dict[str, type[Artifact]] = {}
        self.unknown = {name for name in recipe.sources if name not in sources}
        self.prints: dict[str, str | None] = {name: source.fingerprint for name, source in sources.items()}
        self.wires: dict[str, Wires] = {}

    def plan(self, name: str) -> PlannedStage | None:
        """Plan the next stage; None where something about it is wrong."""
        method = self._method(name)
        if method is None:
            self.unknown.add(name)
            return None
        before = len(self.errors)
        standing, errors = standing_by(self.recipe, name, method, self.plugins)
        self.errors += errors
        settings = self._settings(name, method)
        seed, wires = self._seed(name), self._wires(name, method)
        gates = renamed_gates(self._gates(name), self.recipe, method, wires)
        mixing = self._mixing(name, method, settings, wires)
        if mixing and mixing.stands_by:
            standing, mixing = [*standing, "mix"], None
        mix = mixing.mix if mixing else None
        self._check_gates(name, method, gates, wires)
        constraints, wrong = constraints_of(self.recipe, name, method, wires, self.plugins)
        self.errors += wrong
        self.errors += refused_reference(self.recipe, name, method, settings, wires)
        if settings is not None and len(self.errors) == before:
            settings, unnamed = name_inputs(self.recipe, name, method, settings, wires)
            self.errors += unnamed
            self._check_inputs(name, method, settings, wires)
        self.made[name] = method.produces
        self.prints[name] = None
        if settings is None or len(self.errors) > before:
            return None
        code = code_identity(self.plugins.origins[f"method:{method.address}"], method.module)
        inputs = {role: [self.prints.get(source) for source in names] for role, names in wires.items()}
        if mix and mix.epochs:
            settings = once(settings)
        if mixing and mix:
            inputs[f"mix of {mixing.role}"] = [digest(mix.placed(wires[str(mixing.role)]))]
        bounds = [(cost, constraint.model_dump(mode="json")) for cost, constraint in constraints.items()]
        self.prints[name] = fingerprint = stage_fingerprint(method.name, code, identity(settings), seed, inputs, bounds)
        waiting = tuple(standing)
        return PlannedStage(name, method, settings, wires, seed, fingerprint, True, waiting, gates, constraints, mix)

    def _refuse(self, problem: str, where: str, remedy: str) -> None:
        self.errors.append(RecipeError(problem, where, remedy))

    def _method(self, name: str) -> Method | None:
        given = self.recipe.stages[name].get("method", name)
        where = self.recipe.where("stage", name, "method")
        if not isinstance(given, str):
            self._refuse(f"stage {name!r}: method must be text", where, 'write method = "..."')
            return None
        try:
            return self.plugins.method(given)
        except AlignkitError as error:
            named = "method" in self.recipe.stages[name]
            problem = f"stage {name!r}: {error.problem}" if named else f"stage {name!r} says no method"
            slip = "" if named else next((key for key in self.recipe.stages[name] if near_miss(key, ["method"])), "")
            remedy = f"it has {slip!r}; did you mean 'method'?" if slip else error.remedy
            self.errors.append(type(error)(problem, where, remedy))
            return None

    def _settings(self, name: str, method: Method) -> Settings | None:
        """Read the method's settings from its table, from the stage and from [defaults], the nearest first."""
        stage, fields = self.recipe.stages[name], method.settings.model_fields
        table = stage.get(method.name, {})
        if not isinstance(table, dict):
            where = self.recipe.where("stage", name, method.name)
            problem = f"stage {name!r}: {method.name} must be a table of settings"
            self._refuse(problem, where, f"write {method.name}.NAME = ...")
            return None
        layers: dict[Keys, Mapping[str, Any]] = {
            ("stage", name, method.name): table,
            ("stage", name): {key: value for key, value in stage.items() if key in SHARED and key in fields},
            ("defaults",): {key: value for key, value in self.recipe.defaults.items() if key in fields},
        }
        given = reduce(merged, reversed(layers.values()))
        typed = reduce(merged, (self.recipe.typed(*base) for base in reversed(layers)))
        try:
            given = over_preset(self.recipe, name, method, given)
            return read_settings(method.settings, given, partial(self._find, name, method, layers), typed)
        except RecipeError as error:
            self.errors.append(error)
            return None

    def _find(self, name: str, method: Method, layers: Mapping[Keys, Mapping[str, Any]], keys: Keys) -> tuple[str, str]:
        """Return where a setting stands that may come from several layers, and what it is called there."""
        base = next((base for base, layer in layers.items() if _holds(layer, keys)), ("stage", name, method.name))
        full = ".".join((*base[2:], *keys) if base[0] == "stage" else (*base, *keys))
        return self.recipe.where(*base, *keys), full if base[0] == "defaults" else f"stage {name!r}: {full}"

    def _seed(self, name: str) -> int:
        seed = self.recipe.stages[name].get("seed")
        if seed is None:
            return stage_seed(self.recipe.seed, name)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            problem = f"stage {name!r}: seed must be a whole number from 0 to 2**32 - 1"
            self._refuse(problem, self.recipe.where("stage", name, "seed"), "write seed = 17")
            return 0
        return seed

    def _gates(self, name: str) -> dict[str, dict[str, float]]:
        table = self.recipe.stages[name].get("gates", {})
        gates: dict[str, dict[str, float]] = {}
        for result, bounds in table.items() if isinstance(table, dict) else [("", table)]:
            if result and _is_gate(bounds):
                gates[result] = {key: float(value) for key, value in bounds.items()}
            else:
                gate = f"gates.{result}" if result else "gates"
                problem = f"stage {name!r}: {gate} must be a min or a max of a result, or both"
                where = self.recipe.where("stage", *f"{name}.{gate}".split("."))
                self._refuse(problem, where, "write gates.accuracy.min = 0.65")
        return gates

    def _check_gates(self, name: str, method: Method, gates: Mapping[str, object], wires: Wires) -> None:
        """Refuse gates on results that the method never tells."""
        for result in gates:
            if not method.tells(result, wires):
                known = method.result_names(wires)
                problem = f"stage {name!r}: gates.{result}: {method.name} reports no such result"
                remedy = near_miss(result, known) or f"its results are {', '.join(known)}"
                self._refuse(problem, self.recipe.where("stage", name, "gates", result), remedy)

    def _check_inputs(self, name: str, method: Method, settings: Settings, wires: Wires) -> None:
        """Refuse settings and inputs of which the method says that they do not go together."""
        known = {**self.kinds, **self.made}
        kinds = {role: [known[given] for given in names if given in known] for role, names in wires.items()}
        for problem, remedy in method.refuses(settings, kinds) if method.refuses else ():
            self._refuse(f"stage {name!r}: {problem}", self.recipe.where("stage", name), remedy)

    def _mixing(self, name: str, method: Method, settings: Settings | None, wires: Wires) -> Mixing | None:
        """Read how the stage mixes its sources; None where it does not, or where something is wrong with that."""
        try:
            mix = read_mix(self.recipe, name)
        except RecipeError as error:
            self.errors.append(error)
            return None
        if mix is None or settings is None:
            return None
        mix = mix.renamed(parts_in_round(self.recipe, name))
        mixing = Mixing(self.recipe, name, mix, method, method.needs(settings), wires)
        if not mixing.stands_by:
            self.errors += mixing.problems(self.sources, self.made)
        return mixing

    def _wires(self, name: str, method: Method) -> Wires:
        if not isinstance(self.recipe.stages[name].get("inputs", {}), dict):
            where = self.recipe.where("stage", name, "inputs")
            self._refuse(f"stage {name!r}: inputs must be a table", where, 'write inputs.ROLE = "..."')
            return {}
        names = list(self.recipe.stages)
        later, unknown = tuple(names[names.index(name) :]), frozenset(self.unknown)
        offers = Offers(self.kinds, self.made, self.parts, later, unknown)
        wires, errors = wire(self.recipe, name, method, offers, self.plugins)
        self.errors += errors
        self.wires[name] = in_round(self.recipe, name, method, wires, self.wires)
        return self.wires[name]


def _is_gate(bounds: Any) -> bool:
    return (
        isinstance(bounds, dict)
        and bool(bounds)
        and bounds.keys() <= {"min", "max"}
        and all(type(value) in (int, float) and isfinite(value) for value in bounds.values())
        and bounds.get("min", -inf) <= bounds.get("max", inf)
    )


def _holds(layer: Mapping[str, Any], keys: Keys) -> bool:
    value: Any = layer
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return bool(keys)


def _check_defaults(recipe: Recipe, plugins: Plugins) -> Iterator[RecipeError]:
    known = {*SHARED, *(key for method in plugins.methods.values() for key in method.settings.model_fields)}
    for key in recipe.defaults:
        if key not in known:
            kinds = (method.settings for method in plugins.methods.values())
            named = next((name for kind in kinds if (name := other_name(key, kind))), "")
            hint = named or near_miss(key, sorted(known)) or "they hold settings of methods, such as max_length"
            yield RecipeError(f"defaults.{key}: no method has this setting", recipe.where("defaults", key), hint)


def _check_goals(recipe: Recipe, until: str | None) -> Iterator[RecipeError]:
    names = list(recipe.stages)
    for goal, where in [(until, "--until")] if until else [(goal, recipe.where("result")) for goal in recipe.result]:
        if goal not in names:
            hint = near_miss(goal, names) or f"the stages are {', '.join(names)}"
            yield RecipeError(f"there is no stage {goal!r}", where, hint)
            return


def _wanted(recipe: Recipe, until: str | None, stages: Sequence[PlannedStage]) -> set[str]:
    """Follow the wires back from what is wanted: `until`, else `result`, else the last stage."""
    inputs = {stage.name: stage.inputs for stage in stages}
    waiting = [until] if until else list(recipe.result) or list(recipe.stages)[-1:]
    wanted = set[str]()
    while waiting:
        name = waiting.pop()
        if name in recipe.stages and name not in wanted:
            wanted.add(name)
            waiting += [source for several in inputs[name].values() for source in several]
    return wanted
