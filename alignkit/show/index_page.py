"""The page that links the reports of all kept runs."""

from datetime import UTC, datetime
from pathlib import Path

from alignkit.show.kept_runs import key_figures
from alignkit.show.report import pages, style
from alignkit.store.durable import write_text
from alignkit.store.rundir import index_path
from alignkit.store.runs import kept_runs


def write_index(runs: Path) -> None:
    """Write the page anew, the run that began last first."""
    rows = [
        (run, run.report.relative_to(runs).as_posix() if run.report.is_file() else "", key_figures(run))
        for run in reversed(kept_runs(runs))
    ]
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = pages().get_template("index.html").render(rows=rows, written=written, style=style())
    write_text(index_path(runs), page)
