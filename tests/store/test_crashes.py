"""Deaths at any moment: the same command goes on, and what it makes is what an undisturbed run makes."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignkit import Metrics
from alignkit.store.journal import read_journal

HERE = Path(__file__).parents[1]
PLUGIN = HERE / "light" / "methods.py"


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_dies_at_its_kth_file_operation_goes_on(tmp_path: Path, every: int) -> None:
    line = [sys.executable, str(HERE / "crash_loop.py"), str(tmp_path), str(every)]

    ended = subprocess.run(line, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[-1]) > 50


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_makes_the_same(tmp_path: Path, kills: int) -> None:
    (tmp_path / "light.toml").write_text(
        '[stage.first]\nmethod = "count"\ncount = { steps = 20, seconds = 0.03 }\n[stage.second]\nmethod = "shout"\n'
    )
    line = [sys.executable, "-m", "alignkit", "recipe", "light.toml", "-p", str(PLUGIN)]
    moments = random.Random(kills)

    for _ in range(kills):
        process = subprocess.Popen([*line, "--inline"], cwd=tmp_path, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.5, 1.5))
        process.kill()
        process.wait()
    ended = subprocess.run([*line, "--inline"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    (first,) = tmp_path.glob("runs/stages/first-????????")
    steps = [event.step for event in read_journal("first", first) if isinstance(event, Metrics)]
    (second,) = tmp_path.glob("runs/stages/second-????????/artifact/data.jsonl")
    assert steps == list(range(1, 21))
    assert second.read_text().count("OF 20!") == 20
