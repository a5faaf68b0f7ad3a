"""What a launcher and the nodes of a stage know of each other: files of a folder that all of them see.

launch.json         what each node runs, and how many there are
meeting.json        where the nodes' processes meet: at the node that came first
node-HOST-PID.json  a node that runs the stage, and its exit status once it has ended
asked               what the runner asks of all nodes: stop, kill
interrupted.json    who else has asked them to end
log.txt             what was printed around the stage
"""

import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from alignkit.errors import StageError
from alignkit.store import rundir
from alignkit.store.durable import read_json, write_json, write_text

if TYPE_CHECKING:
    from alignkit.run.machine import Machine

Asked = Literal["stop", "kill"]

PATIENCE = 600.0
"""Seconds in which the nodes of a stage begin after the first one."""
POLL = 0.2
"""Seconds between two looks."""


@dataclass(frozen=True)
class LaunchFolder:
    """One start of a stage on one or more nodes."""

    path: Path

    @classmethod
    def make(cls, partial: Path, machine: "Machine", *, offline: bool) -> Self:
        """Make the folder for the start of a stage, and remove those of its earlier ones; a look at a plan is one
        process on one node."""
        from alignkit.run.worker import is_preflight  # here, since nodes load this module

        looks = is_preflight(partial)
        nodes, processes = (1, 1) if looks else (machine.nodes, machine.processes)
        stage = rundir.finished_folder(partial).name
        folders = rundir.launch_folders(rundir.runs_of(partial))
        for old in folders.glob(f"{stage}-????????"):
            shutil.rmtree(old, ignore_errors=True)
        made = cls(folders / f"{stage}-{secrets.token_hex(4)}")
        made.path.mkdir(parents=True)
        where = "" if looks else f"stage {stage.rpartition('-')[0]!r}"
        facts = {"folder": str(partial), "nodes": nodes, "processes": processes}
        write_json(made.path / "launch.json", {**facts, "offline": offline, "where": where})
        return made

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raise StageError where it cannot be seen from here, or the runner that has made it no longer waits."""
        if not path.parent.is_dir():
            remedy = "let all nodes see one folder for runs, at one path (--runs)"
            raise StageError(f"{socket.gethostname()} does not see it", str(path.parent), remedy)
        if not (path / "launch.json").is_file():
            raise StageError("nobody waits for this stage any more", str(path), "nothing is to be done")
        return cls(path)

    @property
    def name(self) -> str:
        """A name that no other start has."""
        return self.path.name

    @property
    def where(self) -> str:
        """Which stage it is, as errors tell it; empty for a look at a plan."""
        return str(self._facts["where"])

    @property
    def partial(self) -> Path:
        """Where the stage works."""
        return Path(self._facts["folder"])

    @property
    def nodes(self) -> int:
        return int(self._facts["nodes"])

    @property
    def processes(self) -> int:
        """How many processes a node starts."""
        return int(self._facts["processes"])

    @property
    def offline(self) -> bool:
        return bool(self._facts["offline"])

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return read_json(self.path / "launch.json")

    @property
    def words(self) -> list[str]:
        """The command that runs the stage on one node, and is to be run once on each."""
        return [sys.executable, "-m", "alignkit.run.node", str(self.path)]

    @property
    def log(self) -> Path:
        return self.path / rundir.LOG

    def begin_node(self) -> None:
        """Write down that this process runs the stage on its node."""
        write_json(self._node, {"status": None})

    def end_node(self, status: int) -> None:
        write_json(self._node, {"status": status})

    @property
    def _node(self) -> Path:
        return self.path / f"node-{socket.gethostname()}-{os.getpid()}.json"

    @property
    def begun(self) -> bool:
        """A node runs the stage, or has run it."""
        return any(self._nodes())

    @property
    def running(self) -> bool:
        """A node runs the stage, and has not said that it ended."""
        return any(read_json(node).get("status") is None for node in self._nodes())

    def status(self) -> int | None:
        """Return the stage's exit status, of several nodes the first that is no success; None while nodes run it."""
        statuses = [read_json(node).get("status") for node in self._nodes()]
        if len(statuses) < self.nodes or None in statuses:
            return None
        return next((int(status) for status in statuses if status), 0)

    def _nodes(self) -> Iterator[Path]:
        return self.path.glob("node-*.json")

    def ask(self, what: Asked) -> None:
        """Ask all nodes to end, those that have not begun yet among them."""
        with suppress(FileNotFoundError):
            write_text(self.path / "asked", what)

    def asked(self) -> str:
        """Return what is asked of all nodes; empty where nothing is."""
        try:
            return (self.path / "asked").read_text("utf-8")
        except FileNotFoundError:
            return ""

    def interrupt(self, signal: str) -> None:
        """Write down that somebody else than the runner has signalled this node."""
        write_json(self.path / "interrupted.json", {"by": f"{signal} on {socket.gethostname()}"})

    @property
    def interrupted(self) -> str:
        """The signal that a node got from somebody else than the runner; empty where none did."""
        return str(read_json(self.path / "interrupted.json").get("by", ""))

    def meet(self, address: str) -> tuple[str, bool]:
        """Return where all nodes meet, and whether it is at this one: the first to come names its address."""
        meeting = self.path / "meeting.json"
        try:
            (self.path / "meeting").open("x").close()
        except FileExistsError:
            until = time.monotonic() + PATIENCE
            while not (address := str(read_json(meeting).get("address", ""))):
                if time.monotonic() > until:
                    raise StageError("the node that came first does not say where to meet", str(self.path)) from None
                time.sleep(POLL)
            return address, False
        write_json(meeting, {"address": address})
        return address, True

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
