"""thin"""

from pathlib import Path
from typing import Any
from alignkit.run import rundir


class Report:
    def __init__(self, plan: Any, runs: Path) -> None:
        self.path = rundir.report_path(runs.resolve(), plan.recipe.name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *x: Any) -> None: ...
    def __call__(self, event: Any) -> None: ...
