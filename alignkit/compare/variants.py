"""Variants: what `--methods` and `--vary` ask for, as changes of one stage of a recipe."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from alignkit.contract.kinds import Policy
from alignkit.contract.method import Method
from alignkit.contract.names import NAME
from alignkit.contract.paper import Paper
from alignkit.errors import Problem, RecipeError, near_miss
from alignkit.plan.presets import PRESET
from alignkit.plugins import WELL_KNOWN, Plugins
from alignkit.recipe.recipe import Recipe

REPEAT = "repeat"
"""The table of a recipe that says how often its stages repeat."""
LONGEST = 34
"""Letters of a variant's stage name; the number of the seed comes behind."""


@dataclass(frozen=True)
class VariantRequest:
    """What shall be compared."""

    stage: str | None = None
    """Unset: the one that `vary` names, else the last one that makes a policy."""
    methods: Sequence[str] = ()
    """Methods, or papers, whose method with their settings is meant. Unset: the methods whose settings vary, else the
    recipe's own."""
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: int | None = None
    """Unset: those of the recipe's `[compare]`, else one."""
    named: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> what the compared stage says otherwise, by the keys inside the stage."""
    rewards: Sequence[str] = ()
    """Rewards that are measured besides those that decide. Unset: all that a variant learns from."""
    only: Sequence[str] = ()
    """Of all these variants the ones, by their labels, that are run. Unset: all."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where a file says what is asked here: `methods`, `vary KEY`, `named NAME`, `named NAME KEY`, ..."""

    def where(self, what: str, option: str) -> str:
        """Return where something was asked: the place in a file, else the option of the command line."""
        return self.places.get(what, option)


@dataclass(frozen=True)
class Variant:
    """One way of running the compared stage."""

    stage: str
    """The stage that is compared."""
    method: str
    changes: Mapping[str, Any]
    """Key as for `--set` -> value: the method, if it was asked for, what is a paper's, and what varies."""
    paper: str = ""
    """The paper that was asked for instead of a method."""
    of_paper: tuple[str, ...] = ()
    """The keys that are the paper's."""
    named: str = ""
    """What the recipe calls it."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where a file says what is changed, by its keys; the variant itself under an empty one."""

    def varied(self, changes: Mapping[str, Any]) -> "Variant":
        """Return it with further changes, which go before what is the paper's."""
        own = tuple(key for key in self.of_paper if key not in changes)
        return replace(self, changes={**self.changes, **changes}, of_paper=own)

    def placed(self, asked: VariantRequest) -> "Variant":
        """Return it with the places of the file that asked for it, if one did."""
        places = {key: asked.where(self._asked_by(key), "") for key in self.changes}
        return replace(self, places={key: place for key, place in places.items() if place})

    def where(self, key: str) -> str:
        """Return where a change was asked for."""
        value = f"={_text(self.changes[key])}"
        given = f"--methods {self.asked}" if self._asked_by(key) == "methods" else f"--vary {key}{value}"
        return self.places.get(key, given)

    @property
    def brought(self) -> str:
        """What asked for it: the last of the values that vary, else its method."""
        varied = [key for key, _ in self._varied]
        option = f"--vary {varied[-1]}" if varied else "--methods"
        return self.places.get("", self.places.get(varied[-1] if varied else f"{self.stage}.method", option))

    def _asked_by(self, key: str) -> str:
        return "methods" if key == f"{self.stage}.method" or key in self.of_paper else f"vary {key}"

    @property
    def label(self) -> str:
        """How it is called in tables: `dpo beta=0.05`; that of a paper by its name."""
        if self.named:
            return self.named
        own = (f"{self.stage}.{self.method}.", f"{self.stage}.")
        varied = (f"{_short(key, own)}={_text(value)}" for key, value in self._varied)
        return " ".join([self.asked, *varied])

    @property
    def slug(self) -> str:
        """How its stages are called, whatever it is compared with: a finished one is found again."""
        words = f"{self.stage}-{self.label}".lower()
        plain = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in words)
        return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 7]}-{digest(words)}"

    @property
    def asked(self) -> str:
        """What `--methods` called it."""
        return self.paper or self.method

    @property
    def _varied(self) -> Iterator[tuple[str, Any]]:
        own = (f"{self.stage}.method", *self.of_paper)
        return ((key, value) for key, value in self.changes.items() if key not in own)

    def blamed(self, problem: Problem) -> Problem:
        """Return where a mistake stands: it was no `--set` that brought it."""
        for key in self.changes:
            if problem.where == f"--set {key}":
                return Problem(problem.problem, self.where(key), problem.remedy)
        return problem


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _short(key: str, prefixes: Sequence[str]) -> str:
    return next((key.removeprefix(prefix) for prefix in prefixes if key.startswith(prefix)), key)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def read_vary(given: Sequence[str]) -> dict[str, list[str]]:
    """Read `KEY=A,B,...`, each key once. Raises RecipeError."""
    read: dict[str, list[str]] = {}
    for text in given:
        key, _, values = text.partition("=")
        key, listed = key.strip(), split(values)
        if not key or not listed or not all(listed):
            raise RecipeError("no values given", f"--vary {text}", "write --vary KEY=A,B,...")
        if key in read:
            raise RecipeError("this setting varies twice", f"--vary {text}", f"write --vary {key}=A,B,... once")
        read[key] = listed
    return read


def split(text: str) -> list[str]:
    """Split at commas, but not inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += 0 if quote else (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts] if text.strip() else []


def compared_stage(recipe: Recipe, plugins: Plugins, asked: VariantRequest) -> str:
    """Return which stage is compared. Raises RecipeError where there is none, or where something else shall vary."""
    stages = recipe.named_stages
    if asked.stage is not None and asked.stage not in stages:
        hint = near_miss(asked.stage, stages) or f"the stages are {', '.join(stages)}"
        raise RecipeError(f"there is no stage {asked.stage!r}", asked.where("stage", f"--stage {asked.stage}"), hint)
    varied = [key.partition(".")[0] for key in asked.vary]
    stage = asked.stage or next((name for name in varied if name in stages), None)
    stage = stage or next((name for name in reversed([*recipe.stages]) if _makes_policy(recipe, plugins, name)), None)
    if stage is None:
        raise RecipeError("no stage makes a policy, so there is nothing to compare", recipe.path.name, "add one")
    stage = stage if stage == asked.stage else recipe.stage_in_file(stage)
    _check_asked(asked, stage, stages, rounds_vary=_repeats(recipe, stage))
    return stage


def _repeats(recipe: Recipe, stage: str) -> bool:
    """Return whether the name of a stage means all of its rounds, which then vary together."""
    return stage not in recipe.stages


def _makes_policy(recipe: Recipe, plugins: Plugins, stage: str) -> bool:
    method = plugins.methods.get(str(recipe.stages[stage].get("method", stage)))
    return method is not None and issubclass(method.produces, Policy)


def _check_asked(asked: VariantRequest, stage: str, stages: Sequence[str], *, rounds_vary: bool) -> None:
    wrong = []
    if not asked.methods and not asked.vary and not asked.named:
        remedy = f"name methods, --methods ppo,grpo, or values, --vary {stage}.METHOD.SETTING=A,B"
        wrong.append(Problem("nothing differs", f"stage {stage!r}", remedy))
    if asked.seeds is not None and asked.seeds < 1:
        wrong.append(Problem("every variant needs a seed", f"seeds = {asked.seeds}", "give one or more"))
    for name in sorted({name for name in asked.methods if list(asked.methods).count(name) > 1}):
        given = asked.where("methods", f"--methods {','.join(asked.methods)}")
        wrong.append(Problem(f"{name!r} is named twice", given, "name it once"))
    for key, values in asked.vary.items():
        name, _, rest = key.partition(".")
        where = asked.where(f"vary {key}", f"--vary {key}")
        if not values:
            wrong.append(Problem("no values given", f"--vary {key}", f"write --vary {key}=A,B,..."))
        if name != stage and not (rounds_vary and name == REPEAT):
            near = near_miss(name, stages) if name not in stages else ""
            remedy = near or "--set changes another one, for all variants alike"
            wrong.append(Problem(f"only stage {stage!r} varies here", where, remedy))
        elif rest in ("method", "seed"):
            remedy = "write --methods A,B" if rest == "method" else "write --seeds N"
            wrong.append(Problem(f"{rest} has an option of its own", where, remedy))
    if wrong:
        raise RecipeError.of(wrong)


def variants_of(recipe: Recipe, plugins: Plugins, asked: VariantRequest, stage: str) -> list[Variant]:
    """Return every method with every combination of the values that vary, then those that a recipe names; a method's
    own settings vary only for it.

    Raises RecipeError where a setting varies of a method that is not compared, and where two have the same name.
    """
    own = _own_method(recipe, stage)
    known = {*plugins.methods, *WELL_KNOWN}
    belongs = {key: parts[1] for key in asked.vary if len(parts := key.split(".")) > 2 and parts[1] in known}
    named = list(asked.methods) or list(dict.fromkeys(belongs.values())) or ([] if asked.named else [own])
    starts = [_named(name, plugins, recipe, stage, asked) for name in named]
    for key, method in belongs.items():
        if method not in [start.method for start in starts]:
            remedy = f"write --methods {','.join([*named, method])}"
            where = asked.where(f"vary {key}", f"--vary {key}")
            raise RecipeError(f"{method} is not among the methods that are compared", where, remedy)
    variants = [
        start.varied(changes).placed(asked)
        for start in starts
        for changes in _grid({k: v for k, v in asked.vary.items() if belongs.get(k) in (None, start.method)})
    ]
    variants += [_in_recipe(name, changes, own, stage, asked) for name, changes in asked.named.items()]
    return _chosen(variants, asked)


def _in_recipe(name: str, changes: Mapping[str, Any], own: str, stage: str, asked: VariantRequest) -> Variant:
    """Return the variant that a recipe calls by this name."""
    places = {f"{stage}.{key}": asked.where(f"named {name} {key}", "") for key in changes}
    keys = {f"{stage}.{key}": _as_typed(value) for key, value in changes.items()}
    method = str(changes.get("method", own))
    return Variant(stage, method, keys, named=name, places={"": asked.where(f"named {name}", ""), **places})


def _as_typed(value: Any) -> Any:
    """Return a value of a file as a change that means it: text is read as TOML."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else value


def _chosen(variants: Sequence[Variant], asked: VariantRequest) -> list[Variant]:
    """Return the variants that shall run. Raises RecipeError where two have the same name, or one is not there."""
    labels = [variant.label for variant in variants]
    for number, variant in enumerate(variants):
        if variant.label in labels[:number]:
            problem = f"two variants are called {variant.label!r}"
            raise RecipeError(problem, variant.brought, "give one of them another name")
    for name in asked.only:
        if name not in labels:
            hint = near_miss(name, labels) or f"the variants are {', '.join(labels)}"
            raise RecipeError(f"there is no variant {name!r}", asked.where("only", name), hint)
    return [variant for variant in variants if not asked.only or variant.label in asked.only]


def _own_method(recipe: Recipe, stage: str) -> str:
    return str(recipe.stages[recipe.last_round(stage)].get("method", stage))


def _named(name: str, plugins: Plugins, recipe: Recipe, stage: str, asked: VariantRequest) -> Variant:
    """Return the variant of a method's name, or of a paper's, before anything varies."""
    found = plugins.papers_meant(name)
    if len(found) > 1:
        among = " or ".join(method.name for _, method in found)
        where = asked.where("methods", f"--methods {name}")
        raise RecipeError(f"{name!r} is the paper of several methods", where, f"write {among}")
    method = found[0][1].name if found else name
    settings = _of_paper(*found[0], recipe, stage) if found else {}
    head = {} if method == _own_method(recipe, stage) else {f"{stage}.method": method}
    return Variant(stage, method, {**head, **settings}, found[0][0].name if found else "", tuple(settings))


def _of_paper(paper: Paper, method: Method, recipe: Recipe, stage: str) -> dict[str, Any]:
    """Return the settings that make a stage a paper's, by their keys.

    What the recipe's file says besides stays, but for another preset, and for a setting that does not go together with
    those of the paper, which is at its default.
    """
    prefix, said = f"{stage}.{method.name}", recipe.stages[recipe.last_round(stage)].get(method.name, {})
    settings = paper.keys(prefix)
    for key, value in said.items() if isinstance(said, dict) else ():
        field = method.settings.model_fields.get(key)
        if key == PRESET and method.presets:
            settings[f"{prefix}.{key}"] = paper.name if paper.name in method.presets else None
        elif field is None or key in paper.settings or ("stage", stage, method.name, key) in recipe.overrides:
            continue
        elif _refuses(paper, method, key, value):
            settings[f"{prefix}.{key}"] = field.default
    return settings


def _refuses(paper: Paper, method: Method, key: str, value: Any) -> bool:
    """Return whether a setting that is right by itself does not go together with a paper's."""
    alone, together = {key: value}, {**paper.settings, key: value}
    reasons = [replace(paper, settings=some).why_not_of(method.settings) for some in (alone, together)]
    return not reasons[0] and bool(reasons[1])


def _grid(vary: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*vary.values()):
        yield dict(zip(vary, values, strict=True))


def stage_names(variants: Sequence[Variant], taken: Sequence[str]) -> list[str]:
    """Return each variant the name of its stages; one that is taken, or is none, gets a hash behind it."""
    names: list[str] = []
    for variant in variants:
        name = variant.slug
        if name in [*names, *taken] or not NAME.fullmatch(name):
            name = f"{name[: LONGEST - 7]}-{digest(variant.label)}"
        names.append(name)
    return names
