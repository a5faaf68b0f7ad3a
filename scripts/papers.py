"""Keep what a table of `recipes/papers/` has come to, and draw it.

    alignkit reproduce verifiable
    .venv/bin/python scripts/papers.py verifiable runs/verifiable-compare "pass@1=passes/pass@1" "pass@8=passes/pass@8"

The run's figures go to docs/figures/papers_NAME.json, the picture of what is named to docs/pictures/papers-NAME.svg.
The page docs/papers/NAME.md is made of the former (`make docs`).
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import escape

from alignkit.compare.line_figures import measured_in
from alignkit.recipe.self_checks import START
from alignkit.show.report import style
from alignkit.store.runs import KeptRun, open_run

DOCS = Path(__file__).parent.parent / "docs"
NAMES, BARS, LINE, GAP, EDGE = 120, 420, 15, 9, 8
"""Pixels: what names of variants take, the longest bar, a bar's height, the space between two variants, the margin."""

Bars = Mapping[str, Sequence[float]]
"""Variant -> a figure for each of the names."""


def bars_of(run: KeptRun, fields: Sequence[str]) -> dict[str, list[float]]:
    """Return the figures of every variant, and of the start where it has all of them. Raise ValueError where one was
    not measured."""
    lines = [run.comparison["start"], *run.comparison["variants"]]
    found = {line["name"]: [measured_in(run, f"{line['name']}/{field}")[0] for field in fields] for line in lines}
    if None in found[START]:
        del found[START]
    if missing := [name for name, values in found.items() if None in values]:
        raise ValueError(f"not measured: {', '.join(missing)}")
    return {name: [value for value in values if value is not None] for name, values in found.items()}


def drawn(bars: Bars, names: Sequence[str]) -> str:
    """Draw a bar for each figure of each variant, with its value beside it."""
    most = max(max(values) for values in bars.values())
    each = LINE * len(names) + GAP
    width, height = NAMES + BARS + 60, EDGE * 2 + each * len(bars) + LINE + GAP
    parts = []
    for row, (variant, values) in enumerate(bars.items()):
        top = EDGE + row * each
        parts.append(
            f'<text class="name" x="{NAMES - 8}" y="{top + each / 2}" text-anchor="end">{escape(variant)}</text>'
        )
        for number, value in enumerate(values):
            y, long = top + number * LINE, max(1.0, BARS * max(0.0, value) / most)
            parts.append(f'<rect class="dot-{number}" x="{NAMES}" y="{y}" width="{long:.1f}" height="{LINE - 3}"/>')
            parts.append(f'<text x="{NAMES + long + 5:.1f}" y="{y + LINE - 5}">{value:.2f}</text>')
    for number, name in enumerate(names):
        x, y = NAMES + number * 140, height - EDGE - LINE
        parts.append(f'<rect class="dot-{number}" x="{x}" y="{y}" width="10" height="10"/>')
        parts.append(f'<text x="{x + 16}" y="{y + 9}">{escape(name)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    return f"{head}<style>{style()}</style>{''.join(parts)}</svg>\n"


def figures_table(name: str) -> str:
    """Return what a table of papers expects and has come to, as its page shows it."""
    found = json.loads(_figures(name).read_text("utf-8"))
    lines = ["| figure | expected | measured | the paper | source | what differs |", "|---|---|---|---|---|---|"]
    for one in found["figures"]:
        figure = f"`{one['figure']}`" + (f" minus `{one['minus']}`" if one["minus"] else "")
        told = [str(one[key] or "") for key in ("paper", "source", "differs")]
        cells = " | ".join([figure, one["bounds"], f"{one['measured']:.3f}", *told])
        lines.append(f"| {cells} |")
    seeds = len(found["seeds"])
    return "\n".join([*lines, "", f"{seeds} seed{'s' if seeds > 1 else ''}, {found['prompts']} held-out prompts."])


def _figures(name: str) -> Path:
    return DOCS / "figures" / f"papers_{name.replace('-', '_')}.json"


def main(name: str, folder: str, *named: str) -> None:
    """Keep the figures of the run in a folder, the last one of its recipe, and draw those that are named."""
    run = open_run(folder)
    fields = dict(one.split("=", 1) for one in named)
    bars = bars_of(run, list(fields.values()))
    facts = {
        "names": list(fields),
        "bars": bars,
        "seeds": run.comparison["seeds"],
        "prompts": run.comparison["prompts"],
    }
    text = json.dumps({**facts, **run.expected}, indent=1, ensure_ascii=False)
    _figures(name).write_text(f"{text}\n", "utf-8")
    (DOCS / "pictures" / f"papers-{name}.svg").write_text(drawn(bars, list(fields)), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
