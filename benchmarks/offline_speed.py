"""Measure what a pair costs the methods that learn from judged answers: processor time of whole stages, interleaved.

    python benchmarks/offline_speed.py --json docs/figures/offline_speed.json

Every method learns from the same pairs of the packaged reviews, or from their answers, in fp32, from the same
Llama of random weights (see made_models.py); every other repeat takes the methods in the opposite order. A stage is all
of it: reading, the start's log-probabilities, training, saving; each has a folder of its own, so that nothing is found
on disk. Times are processor seconds of this process, to which what else runs on the machine does not count.
"""

import argparse
import json
import os
import resource
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from made_models import SIZES, make_models
from ppo_vs_trl import machine

from alignkit import Policy, Preferences
from alignkit.demo.reviews import rows
from alignkit.plugins import load_plugins
from alignkit.testing import RecordingStage, run_method, write_records

CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dpo": ("dpo", {}),
    "dpo, apo-zero": ("dpo", {"loss": "apo-zero"}),
    "dpo, aot": ("dpo", {"loss": "aot"}),
    "simpo": ("simpo", {}),
    "orpo": ("orpo", {}),
    "cpo": ("cpo", {}),
    "kto": ("kto", {}),
    "kto, all rows": ("kto", {"kl_rows": 32}),
    "kto, apo": ("kto", {"loss": "apo_zero_unpaired"}),
    "bco": ("bco", {}),
    "bco, all rows": ("bco", {"shift_rows": 64}),
    "trl-kto": ("trl-kto", {}),
}
"""What it is called, its method, and its settings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--model", choices=SIZES, default="5M", help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=96, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    words = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in words.cases}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        policy = Policy(name="policy", fingerprint="0", path=make_models(words.model, 28.0, folder).policy)
        columns = ("prompt", "chosen", "rejected")
        given = [{name: row[name] for name in columns} for row in rows("preferences", "train")][: words.pairs]
        pairs = write_records(Preferences, folder / "pairs", given)
        for repeat in range(words.repeats + 1):  # the first is not counted: it imports and tries the model
            for name in words.cases if repeat % 2 else reversed(words.cases):
                took = seconds_of(name, words.epochs, policy, pairs, folder / f"{name} {repeat}", repeat)
                seconds[name] += [took / (words.epochs * len(given))] if repeat else []
    print(table(seconds))
    if words.json:
        facts = {"measured on": machine(), "model": words.model, "pairs": words.pairs, "epochs": words.epochs}
        words.json.write_text(json.dumps({**facts, "seconds a pair": seconds}) + "\n", "utf-8")


def seconds_of(name: str, epochs: int, policy: Policy, pairs: Preferences, folder: Path, seed: int) -> float:
    """Return the processor seconds of a stage."""
    address, settings = CASES[name]
    method = load_plugins(()).method(address)
    role = "answers" if "answers" in method.consumes else "pairs"
    rows_in_a_step = 16 if role == "pairs" else 32  # both answers of a pair are a row
    common = {"epochs": epochs, "batch": rows_in_a_step, "precision": "fp32", "max_lost": 1.0}
    began = used()
    stage = RecordingStage(folder, seed=seed)
    run_method(method, {**common, **settings}, stage, policy=policy, **{role: pairs})
    return used() - began


def used() -> float:
    """Return the processor seconds of this process so far."""
    told = resource.getrusage(resource.RUSAGE_SELF)
    return told.ru_utime + told.ru_stime


def table(seconds: Mapping[str, list[float]]) -> str:
    """Return a table of the median milliseconds of a pair, beside those of the first case."""
    first = median(next(iter(seconds.values())))
    lines = ["| | ms a pair | beside the first |", "|---|---:|---:|"]
    for name, took in seconds.items():
        lines.append(f"| {name} | {1000 * median(took):.1f} | {median(took) / first:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
