"""Kept runs for scripts and notebooks."""

from dataclasses import replace
from pathlib import Path

from alignkit.plugins import load_plugins
from alignkit.store import runs
from alignkit.store.runs import KeptRun


def open_run(path: str | Path) -> KeptRun:
    """Open a run that was kept, and train nothing: `open_run("runs/rlhf").figures`.

    `path` is the folder of a run or its report, or the folder of a recipe, for the run of it that began last. What the
    run made is at `artifact("align")`; `figures`, `metrics("align")` and `samples("align")` are pandas data frames.
    Plugins are loaded where an artifact needs one. Raises RecipeError where no run is kept.
    """
    return replace(runs.open_run(path), load_plugins=load_plugins)
