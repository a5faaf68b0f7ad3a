"""From a stage's journal to those who watch the run."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pluggy

from alignkit.contract.events import Event, Told, Warned
from alignkit.errors import one_line
from alignkit.run.order import Order, start_of
from alignkit.store import rundir
from alignkit.store.durable import read_json
from alignkit.store.journal import Follower
from alignkit.store.results import Finished

Observer = Callable[[Event], None]


class Audience:
    """All observers: plugins' hooks and given functions. One that fails is left out, and the others are told so.

    What it raised is kept in the file `failures`.
    """

    def __init__(self, hooks: pluggy.PluginManager, observers: Sequence[Observer], failures: Path) -> None:
        self._failures = failures
        watching = [hook.plugin for hook in hooks.hook.alignkit_event.get_hookimpls()]
        self._observers = [(str(hooks.get_name(plugin)), _only(hooks, plugin, watching)) for plugin in watching]
        self._observers += [
            (getattr(observer, "__name__", type(observer).__name__), observer) for observer in observers
        ]

    def tell(self, event: Event) -> None:
        for pair in list(self._observers):
            name, observer = pair
            try:
                observer(event)
            except (Exception, SystemExit) as error:
                self._observers.remove(pair)
                self._note(name, error)
                problem = f"the observer {name} failed ({one_line(error)}) and is left out from now on"
                self.tell(Warned(event.stage, problem, f"{self._failures} tells where"))

    def _note(self, name: str, error: BaseException) -> None:
        with self._failures.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{name}:\n{''.join(traceback.format_exception(error))}\n")


def _only(hooks: pluggy.PluginManager, plugin: object, watching: Sequence[object]) -> Observer:
    """Give the event hook of one plugin alone, so that its failure is not the others'."""
    caller = hooks.subset_hook_caller("alignkit_event", [other for other in watching if other is not plugin])
    return lambda event: caller(event=event)


class StageFollower:
    """Passes on what a stage in another process tells, from the moment that it has its folder for itself."""

    def __init__(self, order: Order, partial: Path, tell: Observer) -> None:
        self._order, self._partial, self._tell = order, partial, tell
        self._follower: Follower | None = None
        self._told_before = 0
        """How many of the events to come an earlier attempt has told."""

    def look(self) -> None:
        """Pass on what is new."""
        if self._follower is None:
            started = read_json(self._partial / rundir.STARTED)
            if started.get("attempt") != self._order.attempt:
                return
            self._begin(started["step"], started["told"], self._partial)
        if self._follower:
            self._pass_on(self._follower.news())

    def end(self, final: Finished | None) -> None:
        """Pass on the rest, once the process is gone; a stage that is finished lies in another folder."""
        self.look()
        if final and self._follower is None:
            self._begin(final.facts["resumed_from"], final.facts["told_before"], final.folder)
        if self._follower:
            self._pass_on(self._follower.rest(final.folder if final else self._partial))

    def _begin(self, step: int | None, told_before: int, folder: Path) -> None:
        self._follower, self._told_before = Follower(self._order.stage, folder), told_before
        self._tell(start_of(self._order, rundir.finished_folder(self._partial), resumed=step is not None))

    def _pass_on(self, events: Iterator[Event]) -> None:
        for event in events:
            told_before, self._told_before = self._told_before > 0, self._told_before - 1
            self._tell(replace(event, replayed=True) if told_before and isinstance(event, Told) else event)
