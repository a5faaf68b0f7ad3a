"""Run a recipe that dies at its k-th file operation, and again to its end, for every so many k: what is made is equal.

    python tests/crash_loop.py FOLDER EVERY

An operation is what changes a file or a folder under FOLDER; a write dies half-way. Nothing heavy is imported.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit import Metrics
from alignkit.plan.planner import make_plan
from alignkit.run.runner import run_plan
from alignkit.store.journal import read_journal

RECIPE = 'name = "light"\n[stage.first]\nmethod = "count"\ncount.steps = 4\n[stage.second]\nmethod = "shout"\n'
PLUGIN = Path(__file__).parent / "light" / "methods.py"
DIED = 9
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Death:
    """Ends this process at its k-th file operation."""

    def __init__(self, k: int, folder: Path) -> None:
        self.left, self.folder = k, str(folder)

    def count(self) -> bool:
        """Count one operation, and say whether it is the last."""
        self.left -= 1
        return self.left == 0

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not arguments:
            return
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
        if event == "open" and isinstance(arguments[2], int):
            changes = bool(arguments[2] & CHANGES)
        here = isinstance(arguments[0], str | os.PathLike) and self.folder in os.fspath(arguments[0])
        if changes and here and self.count():
            os._exit(DIED)

    def write(self, real: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
        def half(descriptor: int, data: bytes) -> int:
            if self.count():
                real(descriptor, data[: len(data) // 2])
                os._exit(DIED)
            return real(descriptor, data)

        return half


def in_child(work: Callable[[], None]) -> int:
    """Do something in a process of its own, and return its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(recipe: Path, runs: Path) -> None:
    run_plan(make_plan(recipe, runs=runs, plugins=[PLUGIN]), runs=runs, inline=True)


def dying(recipe: Path, runs: Path, k: int) -> Callable[[], None]:
    def work() -> None:
        death = Death(k, runs)
        os.write = death.write(os.write)
        sys.addaudithook(death.heard)
        run(recipe, runs)

    return work


def made(recipe: Path, runs: Path) -> dict[str, Any]:
    """Return what a run made: all files of artifacts, and the steps that were told."""
    found: dict[str, Any] = {}
    for folder in sorted((runs / "stages").glob("*-*")):
        files = sorted(path for path in (folder / "artifact").rglob("*") if path.is_file())
        steps = [event.step for event in read_journal("", folder) if isinstance(event, Metrics)]
        found[folder.name] = [[path.name, path.read_text()] for path in files], steps
    return found


def main(folder: Path, every: int) -> int:
    """Return how many deaths were survived; end with an error where one was not."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # whoever asks for it is told that it is not there
    recipe = folder / "light.toml"
    recipe.write_text(RECIPE)
    run(recipe, folder / "whole")
    whole = made(recipe, folder / "whole")
    for k in range(1, 10_000, every):
        runs = folder / f"runs-{k}"
        died = in_child(dying(recipe, runs, k))
        ended = in_child(lambda runs=runs: run(recipe, runs))  # type: ignore[misc]
        assert ended == 0, f"after a death at operation {k} the same command ends with {ended}"
        assert made(recipe, runs) == whole, f"after a death at operation {k} something else is made"
        if died == 0:
            return k
    raise AssertionError("it never ran to its end")


if __name__ == "__main__":
    print(main(Path(sys.argv[1]).resolve(), int(sys.argv[2])))
