"""What starts stages: here, or wherever a machine's processes are."""

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

IMPORTING = "importing torch"


class Launcher(Protocol):
    """Starts stages one after another, and holds one at a time; leaving it ends the one that still runs.

    Where several stages run at the same time each has a launcher, and they are asked in turn: `status` waits no longer
    than it is told to, but at a stage's end.

    All that a stage needs lies in its folder, and all that it tells is written there (`store.journal`).
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, partial: Path, *, models: bool = True) -> None:
        """Start the stage whose order lies in this folder; one without models needs none of the heavy libraries.

        The folder may ask for a look at a plan instead (`worker.is_preflight`), which one process does.
        """

    def status(self, wait: float) -> int | None:
        """Return the exit status of the stage if it ends within so many seconds; negative: a signal's number.

        Raise StageError where it cannot be started.
        """

    @property
    def doing(self) -> str:
        """What is done before the stage begins, for those who wait; nothing where it begins at once."""

    @property
    def started(self) -> bool:
        """The stage's own process is there."""

    @property
    def interrupted(self) -> str:
        """Why a stage that has ended was ended by others than the runner (a time limit, say), and may go on if it is
        started again; nothing where it was not."""

    def ask_to_end(self) -> None:
        """Ask the stage to keep what it has learnt and end."""

    def kill(self) -> None:
        """End the stage's processes and whatever they have started; one that has not begun does not begin."""
