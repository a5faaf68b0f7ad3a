"""Load what packages offer, and blame the right one for what is broken."""

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import EntryPoint, distribution, entry_points
from pathlib import Path
from types import ModuleType
from typing import NoReturn, TypeVar

import pluggy

from alignkit.contract import hookspecs
from alignkit.contract.judges import JudgeFunction, JudgeScheme
from alignkit.contract.kinds import Artifact, source_words
from alignkit.contract.method import Method
from alignkit.contract.paper import Paper
from alignkit.contract.reward_function import RewardFunction
from alignkit.contract.settings import why_unusable
from alignkit.contract.tracker import TrackerFunction
from alignkit.errors import AlignkitError, PluginError, RecipeError, near_miss

BUILT_IN = (
    "alignkit.methods.clm",
    "alignkit.methods.sft",
    "alignkit.methods.reward",
    "alignkit.methods.ppo",
    "alignkit.methods.grpo",
    "alignkit.methods.rloo",
    "alignkit.methods.best_of_n",
    "alignkit.methods.evaluate",
    "alignkit.methods.pass_at_k",
    "alignkit.methods.rule_rewards",
    "alignkit.demo.gold",
)

WELL_KNOWN = ("dpo", "ipo", "kto", "cpo", "orpo", "simpo", "rlaif", "remax", "raft", "bco", "nash-md")
"""Methods that one package or another ships: never taken for a misspelt name of one that is installed."""

CLASH_REMEDY = "uninstall one of them, or name the packages to load, with commas between, in ALIGNKIT_PLUGINS"

Offer = Method | RewardFunction | JudgeFunction | JudgeScheme | TrackerFunction
OfferT = TypeVar("OfferT", bound=Offer)
DECORATORS: Mapping[type[Offer], str] = {
    Method: "@method",
    RewardFunction: "@reward",
    JudgeFunction: "@judge",
    JudgeScheme: "@judge_scheme",
    TrackerFunction: "@tracker",
}


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from: a distribution with its version, or a file."""

    plugin: str
    package: str
    version: str = ""
    file: Path | None = None

    def __str__(self) -> str:
        return f"{self.package} {self.version}".strip()

    @property
    def word(self) -> str:
        """What a recipe calls it by: its package, or the name of its file."""
        return self.plugin if self.file else self.package


@dataclass(frozen=True)
class Broken:
    """A plugin that cannot be used, and why."""

    origin: Origin
    reason: str


@dataclass(frozen=True)
class Plugins:
    """All that is offered, who offers it, and what is broken."""

    hooks: pluggy.PluginManager
    methods: Mapping[str, Method]
    rewards: Mapping[str, RewardFunction]
    origins: Mapping[str, Origin]
    """`method:NAME`, `reward:NAME`, `judge:NAME`, `scheme:NAME` or `tracker:NAME` -> who offers it."""
    clashes: Mapping[str, tuple[Origin, ...]]
    """Names that two or more packages offer, and alignkit itself does not."""
    shadowed: Mapping[str, tuple[Origin, ...]] = field(default_factory=dict)
    """Names of alignkit's own that packages offer, too, in vain."""
    addressed: Mapping[str, Method | RewardFunction | JudgeFunction] = field(default_factory=dict)
    """`method:PACKAGE:NAME`, `reward:PACKAGE:NAME` or `judge:PACKAGE:NAME` -> that one, also where another one has the
    name."""
    judges: Mapping[str, JudgeFunction] = field(default_factory=dict)
    """Rules that compare."""
    schemes: Mapping[str, JudgeScheme] = field(default_factory=dict)
    trackers: Mapping[str, TrackerFunction] = field(default_factory=dict)
    broken: tuple[Broken, ...] = ()
    heavy: tuple[Origin, ...] = ()
    """Packages that import torch merely by being loaded."""
    loaded: tuple[Origin, ...] = ()
    examined: bool = True
    """Whether all that packages say of their methods was looked at, or, which is quicker, what a recipe uses alone."""

    @cached_property
    def papers(self) -> list[tuple[Paper, Method]]:
        """All papers with their methods, by name."""
        found = [(paper, method) for method in self.methods.values() for paper in method.papers]
        return sorted(found, key=lambda row: (row[0].name, row[1].name))

    def papers_called(self, name: str) -> list[tuple[Paper, Method]]:
        """Return the papers of this name or source, such as `dapo` or `2503.14476`, with their methods."""
        return [(paper, method) for paper, method in self.papers if paper.is_called(name)]

    def papers_meant(self, name: str) -> list[tuple[Paper, Method]]:
        """Return the papers that are meant where a method is asked for by this name: none where there is such a one."""
        return self.papers_called(name) if name not in self.methods and ":" not in name else []

    @cached_property
    def source_kinds(self) -> Mapping[str, type[Artifact]]:
        """The words that name a source's kind in a recipe, those of the kinds that methods take or make among them."""
        methods = [one for one in (*self.methods.values(), *self.addressed.values()) if isinstance(one, Method)]
        taken = (kind for method in methods for given in method.consumes.values() for kind in given.kinds)
        return source_words([*taken, *(method.produces for method in methods)])

    def method(self, name: str) -> Method:
        """Return the method of that name.

        Raises PluginError where two offer it, or a broken plugin may, and RecipeError where none does.
        """
        if clash := self.clashes.get(f"method:{name}"):
            raise PluginError(
                f"method {name!r} is offered by {' and by '.join(map(str, clash))}",
                remedy=f'say whose, as in method = "{clash[0].word}:{name}"',
            )
        if ":" in name:
            found = self.addressed.get(f"method:{name}")
            if not isinstance(found, Method):
                known = [address.partition(":")[2] for address in self.addressed if address.startswith("method:")]
                raise self.lacks("method", name, known)
            return self._fit(found)
        if name not in self.methods:
            raise self.lacks("method", name, list(self.methods))
        return self._fit(self.methods[name])

    def _fit(self, method: Method) -> Method:
        """Return a method that a recipe uses. Raises PluginError where what it says of itself cannot be."""
        if not self.examined and self.origins[f"method:{method.address}"].plugin not in BUILT_IN:
            method.examine()
        return method

    def reward(self, name: str) -> RewardFunction | None:
        """Return the reward function of that name, or of that `PACKAGE:NAME`."""
        found = self.rewards.get(name) or self.addressed.get(f"reward:{name}")
        return found if isinstance(found, RewardFunction) else None

    def judge(self, name: str) -> JudgeFunction | None:
        """Return the rule of that name, or of that `PACKAGE:NAME`, that compares."""
        found = self.judges.get(name) or self.addressed.get(f"judge:{name}")
        return found if isinstance(found, JudgeFunction) else None

    def tracker(self, name: str) -> TrackerFunction:
        """Return the tracker of that name. Raise PluginError where two offer it, RecipeError where none does."""
        if clash := self.clashes.get(f"tracker:{name}"):
            raise PluginError(f"tracker {name!r} is offered by {' and by '.join(map(str, clash))}", remedy=CLASH_REMEDY)
        if name in self.trackers:
            return self.trackers[name]
        error = self.lacks("tracker", name, list(self.trackers))
        guessed = self.broken or near_miss(name, list(self.trackers))
        raise error if guessed else RecipeError(error.problem, remedy=f"pip install alignkit-{name}")

    def lacks(self, noun: str, name: str, known: Sequence[str], stem: str = "", where: str = "") -> AlignkitError:
        """Make the error for an unknown name: a near miss, else the broken plugins, else what there is."""
        problem = f"{stem}no plugin offers a {noun} {name!r}"
        if noun == "method" and (ours := self._of_paper(name)):
            return RecipeError(problem, where, ours)
        if name not in WELL_KNOWN and (close := near_miss(name, known)):
            return RecipeError(problem, where, close)
        if self.broken:
            reasons = [f"{broken.origin} ({broken.reason})" for broken in self.broken]
            more = f" and {len(reasons) - 2} more, see `alignkit methods`" if len(reasons) > 2 else ""
            remedy = f"a plugin that cannot be loaded may offer it: {'; '.join(reasons[:2])}{more}"
            return PluginError(problem, where, remedy)
        there = f"there are {', '.join(sorted(known)) or 'none'}"
        return RecipeError(problem, where, f"{there}; {self._elsewhere(noun, name)}")

    def _of_paper(self, name: str) -> str:
        """Return which methods are those of a paper of this name; nothing where none is."""
        found = dict.fromkeys(method.name for _, method in self.papers_meant(name))
        return f"it is {' or '.join(found)} with settings that `alignkit methods {name}` shows" if found else ""

    def _elsewhere(self, noun: str, name: str) -> str:
        """Return which package an unknown name is of: one whose names begin alike, else perhaps one of that name."""
        family, dash, _ = name.partition("-")
        for known, origin in self.origins.items():
            if dash and known.startswith(f"{noun}:{family}-"):
                return f"{origin}, whose {noun}s begin with {family}-, has none of that name"
        return f"others come by pip install, perhaps alignkit-{name}"


def load_plugins(files: Sequence[Path] = (), *, examined: bool = True) -> Plugins:
    """Load built-in methods, installed packages and the given files; unless `examined`, look at no method yet.

    A package that fails is listed as broken and never stops the others. ALIGNKIT_PLUGINS, where set, lists the entry
    points or packages to load (comma-separated, or empty for none). Raises PluginError where a given file is missing.
    """
    for file in files:
        _check_file(file)
    hooks = pluggy.PluginManager(hookspecs.GROUP)
    hooks.add_hookspecs(hookspecs)
    offers: dict[str, list[tuple[Origin, Offer]]] = {}
    broken: list[Broken] = []
    heavy: list[Origin] = []
    loaded: list[Origin] = []
    for origin, load in _candidates(files):
        was_light = "torch" not in sys.modules
        try:
            for key, offer in _offers(hooks, origin, load, examined):
                offers.setdefault(key, []).append((origin, offer))
            loaded.append(origin)
        except (Exception, SystemExit) as error:
            hooks.unregister(name=_registered(origin))
            broken.append(Broken(origin, _reason(error)))
        if was_light and "torch" in sys.modules:
            heavy.append(origin)
    first = {key: found[0] for key, found in offers.items()}
    several = {key: tuple(origin for origin, _ in found) for key, found in offers.items() if len(found) > 1}
    ours = {key for key, (origin, _) in first.items() if origin.plugin in BUILT_IN}
    addressed = {
        f"{key.partition(':')[0]}:{origin.word}:{offer.name}": (origin, _of_package(offer, origin))
        for key, found in offers.items()
        for origin, offer in found
        if not isinstance(offer, JudgeScheme | TrackerFunction) and origin.plugin not in BUILT_IN
    }
    return Plugins(
        hooks,
        methods=_of_kind(first, Method),
        rewards=_of_kind(first, RewardFunction),
        origins={key: origin for key, (origin, _) in first.items()}
        | {address: origin for address, (origin, _) in addressed.items()},
        clashes={key: origins for key, origins in several.items() if key not in ours},
        shadowed={key: origins[1:] for key, origins in several.items() if key in ours},
        addressed={address: offered for address, (_, offered) in addressed.items()},
        judges=_of_kind(first, JudgeFunction),
        schemes=_of_kind(first, JudgeScheme),
        trackers=_of_kind(first, TrackerFunction),
        broken=tuple(broken),
        heavy=tuple(heavy),
        loaded=tuple(loaded),
        examined=examined,
    )


def _of_package(
    offer: Method | RewardFunction | JudgeFunction, origin: Origin
) -> Method | RewardFunction | JudgeFunction:
    return replace(offer, package=origin.word) if isinstance(offer, Method) else offer


def _of_kind(offers: Mapping[str, tuple[Origin, Offer]], kind: type[OfferT]) -> dict[str, OfferT]:
    return {offer.name: offer for _, offer in offers.values() if isinstance(offer, kind)}


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise PluginError("there is no such plugin file", str(file), "check the path given with -p")
    if file.suffix != ".py":
        raise PluginError("not a Python file", str(file), "give -p a file that ends in .py")


def _candidates(files: Sequence[Path]) -> Iterator[tuple[Origin, Callable[[], object]]]:
    version = distribution("alignkit").version
    for module in BUILT_IN:
        yield Origin(module, "alignkit", version), partial(importlib.import_module, module)
    yield from _installed()
    for file in files:
        yield Origin(file.stem, str(file), file=file.resolve()), partial(_from_file, file)


def _installed() -> Iterator[tuple[Origin, Callable[[], object]]]:
    chosen = os.environ.get("ALIGNKIT_PLUGINS")
    wanted = None if chosen is None else {name.strip() for name in chosen.split(",") if name.strip()}
    missing = set(wanted or ())
    for point in sorted(entry_points(group=hookspecs.GROUP), key=lambda point: point.name):
        origin = Origin(
            point.name, point.dist.name if point.dist else point.name, point.dist.version if point.dist else ""
        )
        if wanted is None or {origin.plugin, origin.package} & wanted:
            missing -= {origin.plugin, origin.package}
            yield origin, partial(_load_fitting, point)
    for name in sorted(missing):
        yield Origin(name, name), partial(_not_installed, name)


def _load_fitting(point: EntryPoint) -> object:
    """Load a package's plugin. Raises PluginError where the package asks for another version of alignkit."""
    for line in (point.dist and point.dist.requires) or ():
        if re.match(r"alignkit\b(?!-)", line):
            from packaging.requirements import Requirement

            wanted, version = Requirement(line), distribution("alignkit").version
            if wanted.marker is None and not wanted.specifier.contains(version, prereleases=True):
                raise PluginError(
                    f"it needs alignkit {wanted.specifier}, and this is {version}", remedy="update one of them"
                )
    return point.load()


def _not_installed(name: str) -> NoReturn:
    raise PluginError(f"ALIGNKIT_PLUGINS names {name!r}, and no package that is installed has such a plugin")


def _from_file(file: Path) -> ModuleType:
    name = f"alignkit_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _registered(origin: Origin) -> str:
    return f"{origin.package}:{origin.plugin}"


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"


def _offers(
    hooks: pluggy.PluginManager, origin: Origin, load: Callable[[], object], examined: bool
) -> list[tuple[str, Offer]]:
    """Load and register one plugin, and ask it what it offers. Raises whatever it raises."""
    with redirect_stdout(sys.stderr):  # standard output is the command's
        plugin = load()
    hooks.register(plugin, name=_registered(origin))
    _check_hooks(hooks, plugin, origin)
    offers: list[tuple[str, Offer]] = [
        *((f"method:{offer.name}", offer) for offer in _asked(hooks.hook.alignkit_methods, plugin, Method)),
        *((f"reward:{offer.name}", offer) for offer in _asked(hooks.hook.alignkit_rewards, plugin, RewardFunction)),
        *(
            (f"{'scheme' if isinstance(offer, JudgeScheme) else 'judge'}:{offer.name}", offer)
            for offer in _asked(hooks.hook.alignkit_judges, plugin, JudgeFunction, JudgeScheme)
        ),
        *((f"tracker:{offer.name}", offer) for offer in _asked(hooks.hook.alignkit_trackers, plugin, TrackerFunction)),
    ]
    for key, offer in offers if (examined or origin.file) and origin.plugin not in BUILT_IN else ():
        if isinstance(offer, Method):
            offer.examine()
        elif not isinstance(offer, TrackerFunction) and (why := why_unusable(offer.settings)):
            noun, _, name = key.partition(":")
            raise PluginError(f"the settings of its {noun} {name!r} cannot stand in a recipe: {why}")
    return offers


def _check_hooks(hooks: pluggy.PluginManager, plugin: object, origin: Origin) -> None:
    """Refuse a hook that does not exist, and a function that is named like one but not marked."""
    known = [name for name in vars(hookspecs) if name.startswith("alignkit_")]
    marked = [caller.name for caller in hooks.get_hookcallers(plugin) or ()]
    for name in marked:
        if name not in known:
            hint = near_miss(name, known) or f"the hooks are {', '.join(known)}"
            raise PluginError(f"there is no hook {name!r}", remedy=hint)
    if not marked and origin.file and not any(callable(getattr(plugin, name, None)) for name in known):
        raise PluginError("it offers nothing", remedy="mark a function with @hookimpl, such as alignkit_methods")
    for name in known:
        if name not in marked and callable(getattr(plugin, name, None)):
            raise PluginError(f"{name} is not marked as a hook", remedy="put @hookimpl above it")


def _asked(hook: pluggy.HookCaller, plugin: object, *kinds: type[Offer]) -> list[Offer]:
    found: list[Offer] = []
    for implementation in hook.get_hookimpls():
        if implementation.plugin is not plugin:
            continue
        offers = implementation.function()
        if not isinstance(offers, Iterable):
            raise PluginError(f"{hook.name} returned {type(offers).__name__}, not a list")
        for offer in offers:
            if not isinstance(offer, kinds):
                names = " or ".join(kind.__name__ for kind in kinds)
                decorators = " or ".join(DECORATORS[kind] for kind in kinds)
                raise PluginError(
                    f"{hook.name} offers {offer!r}, which is no {names}", remedy=f"put {decorators} above it"
                )
            found.append(offer)
    return found
