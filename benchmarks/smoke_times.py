"""Hold the times that `alignkit check` estimates, with --smoke and without, against a recipe's run from nothing.

    python benchmarks/smoke_times.py rlhf.toml --json smoke.json
    python benchmarks/smoke_times.py mine.toml --until reward

The estimate comes first, then every stage in small, then the whole; each in processes of its own.
"""

import argparse
import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import tempfile
from pathlib import Path
from typing import Any

from ppo_vs_trl import machine

from alignkit.estimate.desk import desk_for
from alignkit.estimate.preflight import preflight
from alignkit.plan.planner import make_plan
from alignkit.recipe.packaged import find_recipe
from alignkit.run import smoke
from alignkit.run.runner import run_plan
from alignkit.store.durable import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--until", metavar="STAGE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        rows = measured(find_recipe(words.recipe), words.until, Path(place) / "runs")
    print(f"{'stage':12} {'taken':>8} {'estimate':>9} {'smoke':>8}   {'memory':>7} {'estimate':>9} {'smoke':>8}")
    for row in rows:
        taken, estimate, small = (row[side] for side in ("taken", "estimated", "after smoke"))
        print(
            f"{row['stage']:12} {taken['seconds']:7.1f}s {estimate['seconds'] / taken['seconds']:8.2f}x "
            f"{small['seconds'] / taken['seconds']:7.2f}x   {taken['memory'] / 2**20:6.0f}M "
            f"{estimate['memory'] / taken['memory']:8.2f}x {small['memory'] / taken['memory']:7.2f}x"
        )
    print(machine())
    if words.json:
        words.json.write_text(json.dumps({"measured on": machine(), "rows": rows}, indent=1) + "\n", "utf-8")


def measured(recipe: Path, until: str | None, runs: Path) -> list[dict[str, Any]]:
    """Estimate, run in small, run whole; give what each says of every stage that is estimated."""
    plan = make_plan(recipe, runs=runs, until=until)
    desk, errors = desk_for(plan, runs, offline=True)
    if errors:
        raise errors[0]
    needs = preflight(desk)
    place = smoke.emptied(runs)
    small = smoke.small_plan(desk, needs, place)
    result = run_plan(small, runs=place, offline=True)
    corrected = {one["stage"]: one for one in smoke.calibrated(needs, small, result, place, True)}
    whole = {
        stage.name: read_json(stage.folder / "stage.json") for stage in run_plan(plan, runs=runs, offline=True).stages
    }
    return [
        {
            "stage": one["stage"],
            "estimated": {name: one[name] for name in ("seconds", "memory")},
            "after smoke": {name: corrected[one["stage"]][name] for name in ("seconds", "memory")},
            "taken": {
                "seconds": whole[one["stage"]]["seconds"],
                "memory": whole[one["stage"]]["peak_memory"]["memory"],
            },
        }
        for one in needs.stages
    ]


if __name__ == "__main__":
    main()
