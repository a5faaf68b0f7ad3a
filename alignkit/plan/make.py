"""Make a plan of a recipe: everything that can be known, and refused, without importing anything heavy."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from alignkit.contract.kinds import Artifact
from alignkit.contract.method import Method
from alignkit.contract.plugins import Plugins, load_plugins
from alignkit.contract.settings import SHARED, Settings
from alignkit.errors import AlignkitError, PluginError, RecipeError, near_miss
from alignkit.plan.check import read_settings
from alignkit.plan.fingerprint import FileHashes, code_identity, stage_fingerprint, stage_seed
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.plan.recipe import Recipe, combine, find_recipe, read_recipe
from alignkit.plan.sources import Source, lock_path, read_lock, read_sources
from alignkit.plan.wiring import Offers, Wires, wire

STAGE_KEYS = ("method", "inputs", "gates", "seed", *SHARED)


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
    path = find_recipe(recipe)
    read = read_recipe(path, set, seed)
    files = tuple(Path(file) for file in plugins)
    loaded = load_plugins(files)
    if missing := list(_missing(read)):
        raise combine(missing)
    if not read.stages:
        raise combine(read.errors)
    hashes = FileHashes(Path(runs) / "cache" / "hashes.json")
    sources, errors = read_sources(read, loaded, hashes, read_lock(lock_path(path, Path(runs))))
    hashes.save()
    planner = _Planner(read, loaded, sources, until)
    stages = planner.stages()
    if wrong := [*read.errors, *errors, *planner.errors]:
        raise combine(wrong)
    return Plan(read, stages, sources, loaded, tuple(file.resolve() for file in files))


def _missing(recipe: Recipe) -> Iterator[AlignkitError]:
    """Check the packages that a recipe requires."""
    from packaging.requirements import InvalidRequirement, Requirement

    for text in recipe.requires:
        where = recipe.where("requires")
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            yield RecipeError(f"requires: {text!r} is no requirement", where, 'write ["alignkit-dpo>=0.1"]')
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            yield RecipeError(f"the recipe needs the package {text!r}", where, f"pip install {text!r}")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            yield RecipeError(
                f"the recipe needs {text!r}, and {wanted.name} {found} is installed", where, f"pip install {text!r}"
            )


class _Planner:
    """Plans stage after stage; remembers what earlier ones make and what is wrong."""

    def __init__(self, recipe: Recipe, plugins: Plugins, sources: Mapping[str, Source], until: str | None) -> None:
        self.recipe, self.plugins, self.sources, self.until = recipe, plugins, sources, until
        self.errors: list[AlignkitError] = []
        self.made: dict[str, type[Artifact]] = {}
        self.unknown = {name for name in recipe.sources if name not in sources}
        self.prints: dict[str, str | None] = {name: source.fingerprint for name, source in sources.items()}

    def stages(self) -> tuple[PlannedStage, ...]:
        planned = [stage for name in self.recipe.stages if (stage := self._stage(name))]
        self._check_defaults(planned)
        wanted = self._wanted({stage.name: stage.inputs for stage in planned})
        return tuple(
            PlannedStage(s.name, s.method, s.settings, s.inputs, s.seed, s.fingerprint, s.name in wanted,
                         s.standing_by, s.gates)
            for s in planned
        )  # fmt: skip

    def _stage(self, name: str) -> PlannedStage | None:
        method = self._method(name)
        if method is None:
            self.unknown.add(name)
            return None
        before = len(self.errors)
        standing = self._check_keys(name, method)
        settings = self._settings(name, method)
        seed = self._seed(name)
        gates = self._gates(name)
        wires = self._wires(name, method)
        self.made[name] = method.produces
        if len(self.errors) > before or settings is None:
            self.prints[name] = None
            return None
        fingerprint = self._fingerprint(method, settings, seed, wires)
        self.prints[name] = fingerprint
        return PlannedStage(name, method, settings, wires, seed, fingerprint, True, standing, gates)

    def _method(self, name: str) -> Method | None:
        given = self.recipe.stages[name].get("method", name)
        where = self.recipe.where("stage", name, "method")
        if not isinstance(given, str):
            self._refuse(f"stage {name!r}: method must be text", where, 'write method = "sft"')
            return None
        try:
            return self.plugins.method(given)
        except PluginError as error:
            named = "method" in self.recipe.stages[name]
            problem = f"stage {name!r}: {error.problem}" if named else f"stage {name!r} names no method"
            broken = "cannot be loaded" in error.remedy
            kind = PluginError if broken or f"method:{given}" in self.plugins.clashes else RecipeError
            self.errors.append(kind(problem, where, error.remedy))
            return None

    def _refuse(self, problem: str, where: str, remedy: str = "") -> None:
        self.errors.append(RecipeError(problem, where, remedy))

    def _check_keys(self, name: str, method: Method) -> tuple[str, ...]:
        """Refuse what nothing knows; give what stands by for another method of the stage."""
        standing: list[str] = []
        for key, value in self.recipe.stages[name].items():
            if key in STAGE_KEYS or key == method.name:
                continue
            other = self.plugins.methods.get(key)
            where = self.recipe.where("stage", name, key)
            if other and isinstance(value, dict):
                self._check_standing(name, method, other, value, where)
            elif not isinstance(value, dict):
                self._unknown_key(name, method, key, where)
                continue
            elif close := near_miss(key, [*STAGE_KEYS, *self.plugins.methods]):
                self._refuse(f"stage {name!r}: unknown key {key!r}", where, close)
                continue
            standing += [f"{key}.{inner}" for inner in value]
        return tuple(standing + self._standing_roles(name, method) + self._standing_shared(name, method))

    def _unknown_key(self, name: str, method: Method, key: str, where: str) -> None:
        if key in method.settings.model_fields:
            hint = f"settings stand under the method's name: {method.name}.{key}"
        else:
            hint = near_miss(key, [*STAGE_KEYS, *self.plugins.methods])
        known = f"a stage has {', '.join(STAGE_KEYS)} and its method's settings under {method.name}"
        self._refuse(f"stage {name!r}: unknown key {key!r}", where, hint or known)

    def _check_standing(self, name: str, method: Method, other: Method, table: Mapping[str, Any], where: str) -> None:
        if not (issubclass(other.produces, method.produces) or issubclass(method.produces, other.produces)):
            self._refuse(
                f"stage {name!r}: {other.name} makes {other.produces.__name__}, so its settings cannot stand in a"
                f" stage of {method.name}, which makes {method.produces.__name__}",
                where,
                f"move them to a stage of {other.name}",
            )
            return
        try:
            find = partial(self.recipe.where, "stage", name, other.name)
            read_settings(other.settings, table, find, f"stage {name!r}: {other.name}.")
        except RecipeError as error:
            self.errors.append(error)

    def _standing_roles(self, name: str, method: Method) -> list[str]:
        table = self.recipe.stages[name].get("inputs", {})
        if not isinstance(table, dict):
            self._refuse(f"stage {name!r}: inputs must be a table", self.recipe.where("stage", name, "inputs"))
            return []
        standing = []
        others = {role for m in self.plugins.methods.values() if m.produces is method.produces for role in m.consumes}
        foreign = any(isinstance(v, dict) and k not in STAGE_KEYS and k not in self.plugins.methods
                      for k, v in self.recipe.stages[name].items())  # fmt: skip
        for role in table:
            if role in method.consumes:
                continue
            close = near_miss(role, list(method.consumes))
            if (role in others or foreign) and (role in others or not close):
                standing.append(f"inputs.{role}")
                continue
            where = self.recipe.where("stage", name, "inputs", role)
            known = f"{method.name} takes {', '.join(method.consumes)}"
            self._refuse(f"stage {name!r}: {method.name} has no input {role!r}", where, close or known)
        return standing

    def _standing_shared(self, name: str, method: Method) -> list[str]:
        return [k for k in self.recipe.stages[name] if k in SHARED and k not in method.settings.model_fields]

    def _settings(self, name: str, method: Method) -> Settings | None:
        stage, fields = self.recipe.stages[name], method.settings.model_fields
        table = stage.get(method.name, {})
        if not isinstance(table, dict):
            where = self.recipe.where("stage", name, method.name)
            self._refuse(
                f"stage {name!r}: {method.name} must be a table of settings", where, f"write {method.name}.x = 1"
            )
            return None
        shared = {key: value for key, value in stage.items() if key in SHARED and key in fields}
        defaults = {key: value for key, value in self.recipe.defaults.items() if key in fields}
        layers = {("stage", name, method.name): table, ("stage", name): shared, ("defaults",): defaults}

        def find(*keys: str) -> str:
            base = next((path for path, layer in layers.items() if keys and keys[0] in layer), ("stage", name))
            return self.recipe.where(*base, *keys)

        try:
            given = _merge(_merge(defaults, shared), table)
            return read_settings(method.settings, given, find, f"stage {name!r}: {method.name}.")
        except RecipeError as error:
            self.errors.append(error)
            return None

    def _seed(self, name: str) -> int:
        seed = self.recipe.stages[name].get("seed")
        if seed is None:
            return stage_seed(self.recipe.seed, name)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            where = self.recipe.where("stage", name, "seed")
            self._refuse(f"stage {name!r}: seed must be a whole number from 0 to 2**32 - 1", where)
            return 0
        return seed

    def _gates(self, name: str) -> dict[str, dict[str, float]]:
        table = self.recipe.stages[name].get("gates", {})
        gates: dict[str, dict[str, float]] = {}
        for figure, bounds in table.items() if isinstance(table, dict) else [("", table)]:
            fine = isinstance(bounds, dict) and bounds and all(
                key in ("min", "max") and isinstance(value, int | float) and not isinstance(value, bool)
                for key, value in bounds.items()
            )  # fmt: skip
            if not fine or not figure:
                where = self.recipe.where("stage", name, "gates", figure)
                self._refuse(
                    f"stage {name!r}: a gate is min or max of a figure", where, "write gates.accuracy.min = 0.65"
                )
                continue
            gates[figure] = {key: float(value) for key, value in bounds.items()}
        return gates

    def _wires(self, name: str, method: Method) -> Wires:
        names = list(self.recipe.stages)
        offers = Offers(
            {key: source.kind for key, source in self.sources.items()},
            dict(self.made),
            tuple(names[names.index(name) :]),
            frozenset(self.unknown),
        )
        if not isinstance(self.recipe.stages[name].get("inputs", {}), dict):
            return {}
        wires, errors = wire(self.recipe, name, method, offers, self.plugins)
        self.errors += errors
        return wires

    def _fingerprint(self, method: Method, settings: Settings, seed: int, wires: Wires) -> str | None:
        code = code_identity(self.plugins.origins[f"method:{method.name}"], method.module)
        inputs = {role: [self.prints.get(name) for name in names] for role, names in wires.items()}
        return stage_fingerprint(method.name, code, settings.model_dump(mode="json"), seed, inputs)

    def _check_defaults(self, planned: Sequence[PlannedStage]) -> None:
        known = {key for method in self.plugins.methods.values() for key in method.settings.model_fields}
        for key in self.recipe.defaults:
            if key not in known and key not in SHARED:
                where = self.recipe.where("defaults", key)
                self._refuse(f"defaults: no method has a setting {key!r}", where, near_miss(key, sorted(known)))

    def _wanted(self, inputs: Mapping[str, Mapping[str, Sequence[str]]]) -> set[str]:
        """Follow the wires back from what is wanted: `until`, else `result`, else the last stage."""
        names = list(self.recipe.stages)
        goals = (self.until,) if self.until else self.recipe.result or names[-1:]
        for goal in goals:
            if goal not in self.recipe.stages:
                where = "--until" if self.until else self.recipe.where("result")
                hint = near_miss(goal, names) or f"the stages are {', '.join(names)}"
                self._refuse(f"there is no stage {goal!r}", where, hint)
        waiting, wanted = list(goals), set[str]()
        while waiting:
            name = waiting.pop()
            if name in self.recipe.stages and name not in wanted:
                wanted.add(name)
                waiting += [n for several in inputs.get(name, {}).values() for n in several]
        return wanted


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one table over another, groups merged key by key."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
