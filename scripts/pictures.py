"""Draw docs/pictures/ from a real run: the chain of stages, the console, and the report; and from a comparison that is
kept in docs/figures/compare.json its frontier.

    make pictures                                       run the demo recipe in build/pictures, then draw
    .venv/bin/python scripts/pictures.py RUNS           draw the last run of the recipe in RUNS, which is not run again
    .venv/bin/python scripts/pictures.py --frontier     draw the frontier alone

What the comparison tells is written by

    alignkit compare methods.toml --methods ppo,grpo,rloo,dpo,best-of-n --seeds 20 --json > docs/figures/compare.json

The report is photographed by Chromium where that is installed; else its picture stays as it is.
"""

import json
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

from markupsafe import escape
from rich.console import Console
from rich.text import Text

from alignkit.compare.page import frontier_of
from alignkit.compare.tables import comparison_of
from alignkit.show.charts import COLOURS, HEIGHT, WIDTH
from alignkit.show.report import chain_of, style
from alignkit.store.runs import KeptRun, open_run

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
COMPARISON = ROOT / "docs" / "figures" / "compare.json"
CONSOLE = "console.log"
COLUMNS = 110
"""Characters of a line of the console."""
WINDOW = (1180, 860)
"""Of the report, in pixels."""
LEGEND, SCALE = 2, 2.0
"""Names side by side under the frontier, and how much larger it is than in a report."""
LARGEST = 300_000
"""Bytes of a picture: a README is read on slow lines, too."""


def run_demo(runs: Path) -> None:
    """Run the demo recipe from nothing, and keep what it says."""
    shutil.rmtree(runs, ignore_errors=True)
    words = ["alignkit", "recipe", "rlhf.toml", "--runs", str(runs.relative_to(ROOT))]
    command = [sys.executable, "-m", *words]
    told = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    (runs / CONSOLE).write_text(f"$ {' '.join(words)}\n{told.stdout}", "utf-8")


def draw_chain(run: KeptRun) -> str:
    """Return the chain of stages as a picture of its own: with a size, and with the style of the report."""
    return _alone(str(chain_of(run)))


def draw_frontier(comparison: Path) -> str:
    """Return the frontier of a kept comparison as a picture of its own, with what its colours mean below it."""
    picture = frontier_of(comparison_of(json.loads(comparison.read_text("utf-8"))))
    below, parts = HEIGHT + 14, []
    for number, name in enumerate(picture.legend):
        x, y = 10 + number % LEGEND * (WIDTH // LEGEND), below + number // LEGEND * 14
        parts.append(f'<circle class="dot-{number % COLOURS}" cx="{x}" cy="{y - 3}" r="3"/>')
        parts.append(f'<text x="{x + 7}" y="{y}">{escape(name)}</text>')
    high = below + (len(picture.legend) - 1) // LEGEND * 14 + 6
    drawn = str(picture.chart).replace(f'"0 0 {WIDTH} {HEIGHT}"', f'"0 0 {WIDTH} {high}"')
    drawn = drawn.replace("</svg>", f"{''.join(parts)}</svg>")
    return _alone(drawn, SCALE)


def _alone(drawn: str, scale: float = 1.0) -> str:
    """Give a drawing of a report a size, and the style of the report."""
    shape = re.search(r'viewBox="0 0 (\S+) (\S+)"', drawn)
    assert shape
    wide, high = (round(float(side) * scale) for side in shape.groups())
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}"'
    return drawn.replace("<svg", head, 1).replace(">", f"><style>{style()}</style>", 1) + "\n"


def draw_console(told: str) -> str:
    """Return what the console said as a picture; long lines are cut."""
    console = Console(record=True, width=COLUMNS, file=StringIO())
    for line in told.splitlines():
        console.print(Text(line), overflow="ellipsis", no_wrap=True)
    return console.export_svg(title="alignkit recipe rlhf.toml")


def photograph(report: Path, picture: Path) -> None:
    """Photograph the head of a report. Raise ValueError where the picture is too large."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print(f"{picture.name} stays as it is: there is no Chromium", file=sys.stderr)
        return
    size = f"--window-size={WINDOW[0]},{WINDOW[1]}"
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", size, f"--screenshot={picture}"]
    subprocess.run([*command, report.resolve().as_uri()], check=True, capture_output=True, timeout=120)
    if picture.stat().st_size > LARGEST:
        raise ValueError(f"{picture} has {picture.stat().st_size} bytes, and {LARGEST} are the most; lower WINDOW")


def main() -> None:
    """Draw the pictures of the run that is named, else of a new one."""
    (PICTURES / "frontier.svg").write_text(draw_frontier(COMPARISON), "utf-8")
    if sys.argv[1:] == ["--frontier"]:
        return
    runs = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build" / "pictures"
    if not sys.argv[1:]:
        run_demo(runs)
    run = open_run(runs / "rlhf")
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "chain.svg").write_text(draw_chain(run), "utf-8")
    if (runs / CONSOLE).is_file():
        (PICTURES / "console.svg").write_text(draw_console((runs / CONSOLE).read_text("utf-8")), "utf-8")
    photograph(run.report, PICTURES / "report.png")


if __name__ == "__main__":
    main()
