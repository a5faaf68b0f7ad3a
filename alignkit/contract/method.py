"""A method is one typed function: its signature is the whole declaration of what it takes and makes."""

import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import permutations, zip_longest
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from alignkit.contract.advice import Advice
from alignkit.contract.constraint import COSTS
from alignkit.contract.kinds import Artifact, Records, Reward, Scores
from alignkit.contract.names import summary_of, why_not
from alignkit.contract.needs import Needs
from alignkit.contract.paper import Paper
from alignkit.contract.settings import SHARED, Settings, why_unusable
from alignkit.contract.stage import Stage
from alignkit.errors import PluginError, one_line

ANY_TEXT = re.compile(r"\\\{[a-z_]+\\\}")
"""A word in braces in the name of a result, once what is special in it is escaped."""
STAGE_KEYS = ("method", "inputs", "mix", "constraints", "gates", "seed", *SHARED)
"""What a stage may have besides tables of settings, each under the name of its method."""

OfferNeeds = Callable[[Any], Needs]
"""From a method's settings to what it will do with its models and rows."""
Refusals = Callable[[Any, Mapping[str, Sequence[type[Artifact]]]], Iterable[tuple[str, str]]]
"""From a method's settings and the kinds of its inputs, by role, to what is wrong with both, and what to do."""


@dataclass(frozen=True)
class Input:
    """One input of a method."""

    role: str
    kinds: tuple[type[Artifact], ...]
    """Any of these will do."""
    several: bool = False
    """It takes a tuple of artifacts."""
    optional: bool = False
    """It may be left out, and is wired only when the recipe names it (`several`: also found, may be empty)."""

    def takes(self, kind: type[Artifact]) -> bool:
        return issubclass(kind, self.kinds)

    @property
    def words(self) -> str:
        return " or ".join(kind.__name__ for kind in self.kinds)


@dataclass(frozen=True)
class Method:
    """What a plugin offers. Callable as the function that it wraps."""

    name: str
    summary: str
    settings: type[Settings]
    consumes: Mapping[str, Input]
    produces: type[Artifact]
    run: Callable[..., Any] = field(repr=False)
    offers_needs: OfferNeeds | None = field(default=None, repr=False)
    """None: nothing can be said of its time and memory before it was tried."""
    results: tuple[str, ...] = ()
    """The names of the results that it may tell; a role in braces stands for each of that role's artifacts, any other
    word in braces for any text. Empty: it does not say."""
    papers: tuple[Paper, ...] = ()
    """The papers whose method it is, each with the settings that make it so."""
    refuses: Refusals | None = field(default=None, repr=False)
    """None: what its settings and its kinds of inputs allow it can do."""
    advice: Advice | None = None
    """When to take it, and what goes wrong with it."""
    package: str = ""
    """Who offers it, where a recipe said so, as in `method = "alignkit-x:sft"`."""

    @property
    def address(self) -> str:
        """What finds it: its name, after its package where a recipe said so."""
        return f"{self.package}:{self.name}" if self.package else self.name

    @property
    def takes_constraints(self) -> bool:
        """It keeps bounds on the means of rewards."""
        return COSTS in self.consumes

    @property
    def presets(self) -> dict[str, Paper]:
        """Return the papers whose settings a recipe may take by their name; none where a setting is called `preset`."""
        own = "preset" in self.settings.model_fields
        return {paper.name: paper for paper in self.papers if paper.settings and not own}

    @property
    def handles_models(self) -> bool:
        """It takes or makes more than rows: a model, or what may ask one."""
        kinds = (self.produces, *(kind for given in self.consumes.values() for kind in given.kinds))
        return self.offers_needs is not None or not all(issubclass(kind, Records | Scores) for kind in kinds)

    def result_names(self, inputs: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Return the names of its results where its inputs have these names."""
        names = list(self.results)
        left_out = {role: () for role, one in self.consumes.items() if one.optional}
        for role, given in {**left_out, **inputs}.items():
            names = [filled for name in names for filled in _filled(name.split(f"{{{role}}}"), given)]
        return tuple(names)

    def tells(self, result: str, inputs: Mapping[str, Sequence[str]]) -> bool:
        """Return whether it may tell a result of this name; one that does not declare any may tell all."""
        patterns = (re.escape(name) for name in self.result_names(inputs))
        return not self.results or any(re.fullmatch(ANY_TEXT.sub(".+", pattern), result) for pattern in patterns)

    def needs(self, settings: Settings) -> Needs | None:
        """Return what it will do with its models and rows; None where it does not say."""
        if self.offers_needs is None:
            return None
        try:
            needs = self.offers_needs(settings)
        except Exception as error:
            raise _wrong(self.name, self.run, f"its needs cannot be told ({one_line(error)})") from error
        if not isinstance(needs, Needs):
            raise _wrong(self.name, self.run, f"its needs are {type(needs).__name__}, not what `trainer_needs` returns")
        return needs

    def examine(self) -> None:
        """Raise PluginError where it says something of itself that cannot be: settings of papers, needs of defaults."""
        for paper in self.papers:
            if why := paper.why_not_of(self.settings):
                raise _wrong(self.name, self.run, f"the settings of paper {paper.name!r} are not its own: {why}")
        if why := why_unusable(self.settings):
            raise PluginError(f"the settings of its method {self.name!r} cannot stand in a recipe: {why}")
        if all(not field.is_required() for field in self.settings.model_fields.values()):
            with suppress(ValidationError):
                self.needs(self.settings())

    def __call__(self, settings: Settings, stage: Stage, **inputs: object) -> Any:
        return self.run(settings, stage, **inputs)

    @property
    def module(self) -> str:
        return self.run.__module__


def _filled(parts: Sequence[str], given: Sequence[str]) -> Iterator[str]:
    """Put different ones of the given names between the parts."""
    for chosen in permutations(given, len(parts) - 1):
        yield "".join(text for pair in zip_longest(parts, chosen, fillvalue="") for text in pair)


def method(
    name: str,
    *,
    needs: OfferNeeds | None = None,
    results: Sequence[str] = (),
    papers: Sequence[Paper] = (),
    refuses: Refusals | None = None,
    advice: Advice | None = None,
) -> Callable[[Callable[..., Any]], Method]:
    """Make a `Method` of `f(settings, stage, *, role: Kind, ...) -> Kind`.

    `needs` tells from its settings which of our loops it runs and how (`trainer_needs`, `pair_needs`,
    `sampling_needs`, or a function of its own), so that `alignkit check` can estimate what it will take. `results` are
    the names of what it tells by `stage.result`, so that a gate on another one is refused by the plan. `papers` are
    those whose method it is, by which `alignkit methods` finds it, too. `refuses` tells from settings and the kinds of
    inputs what the plan refuses: a setting that does nothing without an input, say. `advice` says when to take it, for
    `alignkit methods --for`.

    An input is a kind, a union of kinds, `Kind | None = None` (only when the recipe names it), or
    `tuple[Kind, ...]` (with `= ()` it may be empty). `costs: tuple[Reward, ...] = ()` are what a recipe bounds under
    `constraints`, each with its `constraint`. Raises PluginError where the signature says anything else; `examine`
    looks at the rest of what it says, for the commands that tell of packages and for recipes that use it.
    """

    def wrap(function: Callable[..., Any]) -> Method:
        if why := why_not(name, function):
            raise _wrong(name, function, why)
        if name in STAGE_KEYS:
            raise _wrong(name, function, "a stage has a key of that name")
        hints = _hints(name, function)
        parameters = list(inspect.signature(function).parameters.values())
        settings = _check_head(name, function, parameters, hints)
        consumes = {p.name: _input(name, function, p, hints) for p in parameters[2:]}
        produces = hints.get("return")
        if not (isinstance(produces, type) and issubclass(produces, Artifact)):
            raise _wrong(name, function, "it must return one kind, such as -> Policy")
        told = _results(name, function, results)
        if why := _why_no_words(papers, advice):
            raise _wrong(name, function, why)
        if refuses and not _takes(refuses, 2):
            raise _wrong(name, function, "its `refuses` must take settings and the kinds of inputs")
        described = (name, summary_of(function), settings, consumes, produces, function)
        return Method(*described, needs, told, tuple(papers), refuses, advice)

    return wrap


def _results(name: str, function: Callable[..., Any], results: Sequence[str]) -> tuple[str, ...]:
    if isinstance(results, str) or "" in results:
        raise _wrong(name, function, 'its results must be names, such as results=("accuracy",)')
    return tuple(results)


def _why_no_words(papers: object, advice: object) -> str:
    """Return why its papers or its advice are none; nothing where they are."""
    if not isinstance(papers, list | tuple) or not all(isinstance(paper, Paper) for paper in papers):
        return "its papers must be several, such as papers=(Paper(...),)"
    if advice is not None and not isinstance(advice, Advice):
        return "its advice must be Advice(when, risk)"
    names = [paper.name for paper in papers]
    if twice := [name for name in names if names.count(name) > 1]:
        return f"two of its papers have the name {twice[0]!r}"
    return ""


def _takes(function: Callable[..., Any], arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def _wrong(name: str, function: Callable[..., Any], why: str) -> PluginError:
    where = f"{function.__module__}.{function.__qualname__}"
    return PluginError(f"method {name!r} cannot be read: {why}", where, "`alignkit new NAME` writes one that can")


def _hints(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        why = f"{error}; an annotation imported only under TYPE_CHECKING cannot be read, import it normally"
        raise _wrong(name, function, why) from error


def _check_head(
    name: str, function: Callable[..., Any], parameters: list[inspect.Parameter], hints: dict[str, Any]
) -> type[Settings]:
    if len(parameters) < 2 or any(p.kind is p.KEYWORD_ONLY for p in parameters[:2]):
        raise _wrong(name, function, "its first two parameters must be the settings and the stage")
    settings = hints.get(parameters[0].name)
    if not (isinstance(settings, type) and issubclass(settings, Settings)):
        raise _wrong(name, function, "its first parameter must be annotated with a Settings class")
    if hints.get(parameters[1].name) is not Stage:
        raise _wrong(name, function, "its second parameter must be annotated with Stage")
    return settings


def _is_kind(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Artifact)


def _input(name: str, function: Callable[..., Any], parameter: inspect.Parameter, hints: dict[str, Any]) -> Input:
    role, hint, default = parameter.name, hints.get(parameter.name), parameter.default
    if parameter.kind is not parameter.KEYWORD_ONLY:
        raise _wrong(name, function, f"its input {role!r} must be keyword-only (after a *)")
    several = get_origin(hint) is tuple and len(get_args(hint)) == 2 and get_args(hint)[1] is Ellipsis
    inner = get_args(hint)[0] if several else hint
    options = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else (inner,)
    kinds = tuple(option for option in options if option is not type(None))
    optional = type(None) in options
    if not kinds or not all(map(_is_kind, kinds)) or (several and optional):
        raise _wrong(name, function, f"its input {role!r} must be a kind, a union, optional, or a tuple of kinds")
    left_out = () if several else None
    if default not in (inspect.Parameter.empty, left_out):
        raise _wrong(name, function, f"its input {role!r} can only default to {left_out}")
    if optional != (default is None):
        raise _wrong(name, function, f"its input {role!r} must be `Kind | None = None` to be optional")
    if role == COSTS and (kinds != (Reward,) or not several or default != ()):
        raise _wrong(name, function, "its input 'costs', what a recipe bounds, must be `tuple[Reward, ...] = ()`")
    return Input(role, kinds, several, optional or default == ())
