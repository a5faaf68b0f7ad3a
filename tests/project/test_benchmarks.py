"""Benchmarks still start: each says what it takes, one runs in small, and the sides do their part of the work."""

import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import cast

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = {script.stem: script.read_text("utf-8") for script in sorted(BENCHMARKS.glob("*.py"))}
ASKED = [name for name, text in SCRIPTS.items() if "ArgumentParser" in text]


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let benchmarks import each other, as they do when one is started."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(name: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    importlib.import_module(name).main()


@pytest.mark.parametrize("name", ASKED)
def test_a_benchmark_tells_what_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(name, "--help", monkeypatch=monkeypatch)

    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name}.py")


def test_every_script_stands_in_the_table() -> None:
    page = (BENCHMARKS / "README.md").read_text("utf-8")

    assert [name for name in SCRIPTS if f"| `{name}.py` |" not in page] == []


@pytest.mark.slow
def test_the_speed_of_reading_is_measured_in_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ("structural checks", "whole audit", "start")
    run("data_speed", "--rows", "200", "--parts", *parts, monkeypatch=monkeypatch)

    lines = capsys.readouterr().out.splitlines()
    assert [line[:18].strip() for line in lines] == [*parts]
    assert all(" rows/s of one processor, peak memory " in line for line in lines)


def test_learning_tells_what_the_page_shows() -> None:
    from learning_vs_trl import Run, summary

    def made(side: str, gold: float, seconds: float | None) -> Run:
        return Run(side, 1, 1e-4, 0.05, [(0, 0.0, 0.4), (1, 2.0, gold)], 8, seconds)

    words = Namespace(target=0.75, seeds=[1, 2], trl_set=[], threads=2)

    facts = summary(
        words, [made("TRL", 0.8, 1.75), made("ours", 0.8, 1.0), made("TRL", 0.7, 3.5), made("ours", 0.9, 0.5)]
    )

    assert facts["sides"]["ours"] == {"seconds": [1.0, 0.5], "median": 0.75, "times TRL": 3.5, "ends": [0.8, 0.9]}
    assert facts["curves"] == [{"side": "TRL", "gold": [0.4, 0.75]}, {"side": "ours", "gold": [0.4, 0.85]}]


@pytest.mark.slow
def test_dpo_is_measured_against_trl_in_small() -> None:
    small = ["--model", "5M", "--batch", "4", "--steps", "1", "--exact-steps", "2", "--repeats", "1", "--micro", "4"]
    command = [sys.executable, str(BENCHMARKS / "dpo_vs_trl.py"), *small]

    ended = subprocess.run(command, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("times TRL's speed") == 2


@pytest.mark.slow
def test_our_side_of_ppo_takes_the_steps_that_it_is_told(tmp_path: Path) -> None:
    from job import Job, run_side
    from made_models import make_models

    made = make_models("5M", 8.0, tmp_path)
    job = Job(
        policy=str(made.policy),
        reward=str(made.reward),
        prompts=["the film was", "I liked the", "a good story", "one day"],
        updates=2,
        batch=4,
        epochs=2,
        minibatches=1,
        max_new_tokens=16,
        learning_rate=1e-5,
        kl_coef=0.05,
        seed=1,
    )

    told = run_side("our_side.py", job, tmp_path / "ours")

    assert (told.steps, len(told.updates)) == ([2, 4], 2)


def prove(out: Path, *words: str) -> list[dict[str, object]]:
    line = [sys.executable, str(BENCHMARKS / "gpu" / "prove.py"), str(out), *words]
    subprocess.run(line, env=os.environ | {"REHEARSE": "1"}, check=True, capture_output=True)
    return [json.loads(told) for told in (out / "gpu.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_what_a_gpu_proves_is_rehearsed_in_small(tmp_path: Path) -> None:
    dpo, grpo = prove(tmp_path, "dpo 0.5B 8 padded again + online grpo 0.5B 8 + table")

    assert "error" not in dpo.keys() | grpo.keys()
    assert (dpo["shape"], dpo["words"], grpo["job"]) == ("0.5B", ["padded", "again"], "grpo")
    assert set(cast("dict[str, float]", grpo["answer_tokens_per_second"])) == {"update", "/sample", "/score", "/learn"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_that_a_gpu_proves_is_rehearsed(tmp_path: Path) -> None:
    script = BENCHMARKS / "gpu" / "prove.sh"
    subprocess.run(
        ["sh", str(script), "--rehearse", str(tmp_path)], env=os.environ | {"PYTHON": sys.executable}, check=True
    )

    told = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert not [line for line in told if "error" in line]
    assert {line["job"] for line in told} == {"equal", "dpo", "ppo", "grpo", "trl grpo"}
