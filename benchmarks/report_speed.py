"""Measure how long a report takes to write, how large it is, and how long a browser takes to open it.

    python benchmarks/report_speed.py --steps 10000

A run of the five stages of recipes/rlhf.toml is made up, with so many logged steps in all, every figure, 24 samples a
stage and 1,000 held-out rows each. The browser is Chromium, headless, where it is installed.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from alignkit.contract.events import Metrics, Result, Rows, Sample, SampleKind, StageFinished, Warned, plain
from alignkit.noise import change_interval, mean_interval
from alignkit.plan.plan import Plan
from alignkit.plan.planner import make_plan
from alignkit.run.keeping import RunRecord
from alignkit.show.report import write_report
from alignkit.store import rundir
from alignkit.store.journal import Journal
from alignkit.store.runs import KeptRun

CURVES = {
    "pretrain": ("loss", "entropy", "token_accuracy", "tokens_per_second", "rows_per_second", "learning_rate"),
    "finetune": ("loss", "entropy", "token_accuracy", "tokens_per_second", "rows_per_second", "learning_rate"),
    "reward": ("loss", "accuracy", "margin", "mean_reward", "tokens_per_second", "learning_rate"),
    "align": ("objective/scores", "objective/kl", "loss/policy_avg", *(f"figure/{n}" for n in range(26))),
    "scores": (),
}
ROWS = 1000
KINDS: tuple[SampleKind, ...] = ("best", "worst", "")
WORDS = (
    "the",
    "book",
    "was",
    "great",
    "and",
    "its",
    "story",
    "lovely",
    "but",
    "the",
    "end",
    "is",
    "slow",
    "for",
    "anybody",
)


def made_up(stage: str, steps: int) -> list[Any]:
    """Return what a stage tells that takes so many steps."""
    chance = random.Random(stage)

    def rows(mean: float) -> list[float]:
        return [chance.gauss(mean, 1) for _ in range(ROWS)]

    def text(words: int) -> str:
        return " ".join(chance.choices(WORDS, k=words))

    def measured(name: str, before: list[float], after: list[float], better: Any = "higher") -> Result:
        was, now = sum(before) / ROWS, sum(after) / ROWS
        around = mean_interval(after), change_interval(before, after)
        return Result(stage, name, was, now, None, ROWS, *around, better)

    curves = [
        Metrics(stage, n, steps, {name: math.exp(-n / steps) + chance.gauss(0, 0.1) for name in CURVES[stage]})
        for n in range(steps if CURVES[stage] else 0)
    ]
    names = {"scores": [f"reward {policy}" for policy in ("pretrain", "finetune", "align")]}
    results = [measured(name, rows(0.2), rows(0.8)) for name in names.get(stage, ["reward", "kl", "length"])]
    pictured = {"margin": rows(1), "longer": rows(0)} if stage == "reward" else {}
    if stage in ("align", "scores"):
        pictured = {"reward before": rows(0.2), "reward": rows(0.8), "length before": rows(20), "length": rows(19)}
    samples = [
        Sample(
            stage, {"prompt": text(12), "before": text(60), "after": text(60), "reward after": chance.random()}, kind
        )
        for kind in KINDS
        for _ in range(8)
    ]
    return [*curves, *results, Rows(stage, pictured), *samples, Warned(stage, "rows are long", "cut them")]


def make_run(folder: Path, steps: int) -> KeptRun:
    """Make up a finished run with so many logged steps in all, and keep it under `folder`."""
    plan = make_plan(Path(__file__).parents[1] / "recipes" / "rlhf.toml", runs=folder)
    with RunRecord(plan, folder) as record:
        for stage in CURVES:
            _finish(plan, folder, stage, made_up(stage, steps // 4))
            place = rundir.stage_folder(folder.resolve(), stage, str(plan.stage(stage).fingerprint))
            record(StageFinished(stage, plan.stage(stage).method.name, "Policy", str(place), 1.0))
    return KeptRun(record.folder)


def _finish(plan: Plan, runs: Path, stage: str, told: list[Any]) -> None:
    """Leave a stage's files as if it had told this and finished."""
    place = rundir.stage_folder(runs.resolve(), stage, str(plan.stage(stage).fingerprint))
    place.mkdir(parents=True)
    journal = Journal(place, {})
    for event in told:
        journal.tell(event)
    journal.close()
    facts = {
        "format": 1,
        "stage": stage,
        "method": plan.stage(stage).method.name,
        "inputs": {},
        "seconds": 60.0,
        "began": "2026-11-27T12:00:00+00:00",
        "ended": "2026-11-27T12:01:00+00:00",
        "peak_memory": {"memory": 2**30},
        "processes": 1,
        "device": "cpu",
        "host": "here",
        "versions": {},
        "results": [plain(event) for event in told if isinstance(event, Result)],
        "artifact": {"kind": "Policy", "content": stage, "files": {}},
    }
    (place / rundir.STAGE).write_text(json.dumps(facts))


OPENED = """
<script>addEventListener("load", () => { document.title = Math.round(performance.now()); });</script>
"""


def opened(report: Path, browser: str) -> float:
    """Return the seconds from opening a report in a browser until it is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        page.write_text(report.read_text("utf-8") + OPENED)
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True)
    return int(done.stdout.partition("<title>")[2].partition("</title>")[0]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="logged steps of all stages together")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), asked.steps)
        times = []
        for _ in range(asked.repeats):
            began = time.perf_counter()
            write_report(KeptRun(run.folder))
            times.append(time.perf_counter() - began)
        size = run.report.stat().st_size
        print(f"{asked.steps} steps: written in {median(times):.2f} s (median of {asked.repeats}), {size / 1e6:.2f} MB")
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser:
            seconds = median(opened(run.report, browser) for _ in range(asked.repeats))
            print(f"opened in {seconds:.2f} s")


if __name__ == "__main__":
    main()
