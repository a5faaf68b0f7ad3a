"""Load what packages offer, and blame the right one for what is broken."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distribution, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from alignkit.contract import hookspecs
from alignkit.contract.method import Method
from alignkit.contract.rewards import RewardFunction
from alignkit.errors import PluginError, near_miss

BUILT_IN = (
    "alignkit.methods.clm",
    "alignkit.methods.sft",
    "alignkit.methods.reward",
    "alignkit.methods.ppo",
    "alignkit.methods.evaluate",
    "alignkit.demo.gold",
)


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from: a distribution with its version, or a file."""

    plugin: str
    package: str
    version: str = ""
    file: Path | None = None

    def __str__(self) -> str:
        return f"{self.package} {self.version}".strip()


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
    """`method:NAME` or `reward:NAME` -> who offers it."""
    clashes: Mapping[str, tuple[Origin, ...]]
    """Names that two or more packages offer."""
    broken: tuple[Broken, ...] = ()
    heavy: tuple[Origin, ...] = ()
    """Packages that import torch merely by being loaded."""
    loaded: tuple[Origin, ...] = field(default=())

    def method(self, name: str) -> Method:
        """Give the method of that name; raises PluginError where two offer it, or where none does."""
        if clash := self.clashes.get(f"method:{name}"):
            raise PluginError(
                f"method {name!r} is offered by {' and by '.join(map(str, clash))}",
                remedy="uninstall one of them, or name the ones to load in ALIGNKIT_PLUGINS",
            )
        try:
            return self.methods[name]
        except KeyError as error:
            raise PluginError(
                f"no plugin offers a method {name!r}", remedy=self.advice(name, list(self.methods))
            ) from error

    def advice(self, name: str, known: Sequence[str]) -> str:
        """Say what may help where a name is unknown: a near miss, else the broken plugins, else a package."""
        if close := near_miss(name, known):
            return close
        if self.broken:
            reasons = [f"{broken.origin} ({broken.reason})" for broken in self.broken]
            more = f" and {len(reasons) - 2} more, see `alignkit methods`" if len(reasons) > 2 else ""
            return f"a plugin that cannot be loaded may offer it: {'; '.join(reasons[:2])}{more}"
        return f"there are {', '.join(sorted(known))}; others come by pip install, perhaps alignkit-{name}"


def load_plugins(files: Sequence[Path] = ()) -> Plugins:
    """Load built-in methods, installed packages and the given files.

    A package that fails is listed as broken and never stops the others. ALIGNKIT_PLUGINS, where set, is the list
    of entry points to load (comma-separated, or empty for none). Raises PluginError where a given file is missing.
    """
    hooks = pluggy.PluginManager(hookspecs.GROUP)
    hooks.add_hookspecs(hookspecs)
    broken: list[Broken] = []
    heavy: list[Origin] = []
    loaded: list[Origin] = []
    for origin, load in _candidates(files):
        light = "torch" not in sys.modules
        reason = _register(hooks, origin, load)
        if reason:
            broken.append(Broken(origin, reason))
        else:
            loaded.append(origin)
        if light and "torch" in sys.modules:
            heavy.append(origin)
    return _collect(hooks, loaded, broken, tuple(heavy))


class _Load:
    """How to get at a plugin's module."""

    def __init__(self, source: EntryPoint | str | Path) -> None:
        self.source = source

    def __call__(self) -> object:
        if isinstance(self.source, EntryPoint):
            return self.source.load()
        return _from_file(self.source) if isinstance(self.source, Path) else importlib.import_module(self.source)


def _candidates(files: Sequence[Path]) -> Iterator[tuple[Origin, _Load]]:
    version = distribution("alignkit").version
    for module in BUILT_IN:
        yield Origin(module, "alignkit", version), _Load(module)
    chosen = os.environ.get("ALIGNKIT_PLUGINS")
    names = None if chosen is None else {name.strip() for name in chosen.split(",")}
    for point in sorted(entry_points(group=hookspecs.GROUP), key=lambda p: p.name):
        if names is None or point.name in names:
            yield _origin(point.name, point.dist), _Load(point)
    for file in files:
        yield Origin(file.stem, str(file), file=file.resolve()), _Load(file)


def _origin(plugin: str, dist: Distribution | None) -> Origin:
    return Origin(plugin, dist.name, dist.version) if dist else Origin(plugin, plugin)


def _from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise PluginError("there is no such plugin file", str(file), "check the path given with -p")
    name = f"alignkit_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError("not a Python file", str(file), "give -p a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _register(hooks: pluggy.PluginManager, origin: Origin, load: _Load) -> str:
    """Register one plugin; give the reason where it cannot be used."""
    try:
        module = load()
        hooks.register(module, name=f"{origin.package}:{origin.plugin}")
    except PluginError as error:
        if origin.file and not origin.file.is_file():
            raise
        return str(error)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    try:
        hooks.check_pending()
    except pluggy.PluginValidationError as error:
        hooks.unregister(module)
        return f"a hook of it does not exist: {error}"
    return ""


def _collect(
    hooks: pluggy.PluginManager, loaded: list[Origin], broken: list[Broken], heavy: tuple[Origin, ...]
) -> Plugins:
    offers: dict[str, list[tuple[Origin, Method | RewardFunction]]] = {}
    for origin in list(loaded):
        try:
            for key, offer in _offers(hooks, origin):
                offers.setdefault(key, []).append((origin, offer))
        except Exception as error:
            broken.append(Broken(origin, f"{type(error).__name__}: {error}"))
            loaded.remove(origin)
    methods: dict[str, Method] = {}
    rewards: dict[str, RewardFunction] = {}
    for found in offers.values():
        offer = found[0][1]
        if isinstance(offer, Method):
            methods[offer.name] = offer
        else:
            rewards[offer.name] = offer
    origins = {key: found[0][0] for key, found in offers.items()}
    clashes = {key: tuple(origin for origin, _ in found) for key, found in offers.items() if len(found) > 1}
    return Plugins(hooks, methods, rewards, origins, clashes, tuple(broken), heavy, tuple(loaded))


def _offers(hooks: pluggy.PluginManager, origin: Origin) -> Iterable[tuple[str, Method | RewardFunction]]:
    plugin = hooks.get_plugin(f"{origin.package}:{origin.plugin}")
    methods: Iterable[Any] = getattr(plugin, "alignkit_methods", list)()
    rewards: Iterable[Any] = getattr(plugin, "alignkit_rewards", list)()
    for offer, kind in [(m, Method) for m in methods] + [(r, RewardFunction) for r in rewards]:
        if not isinstance(offer, kind):
            raise TypeError(f"it offers {offer!r}, which is no {kind.__name__}; decorate the function")
        yield f"{kind.__name__.lower().removesuffix('function')}:{offer.name}", offer
