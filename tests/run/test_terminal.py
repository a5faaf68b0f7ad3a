"""A run on a terminal: what stands there, keys, and signals that are heeded at once."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from light_recipes import PLUGIN
from terminal import Terminal, on_terminal

SHOUT = '[stage.second]\nmethod = "shout"\n'
STEPS = '[stage.first]\nmethod = "count"\ncount.steps = {steps}\ncount.seconds = {seconds}\n' + SHOUT
BREATHE = """
import time
from alignkit import Settings, Stage, Text, hookimpl, method

class BreatheSettings(Settings):
    'None.'

@method("breathe")
def breathe(settings: BreatheSettings, stage: Stage, *, text: Text) -> Text:
    'Take a minute.'
    time.sleep(60)
    return stage.save_rows(Text, list(text.train()))

@hookimpl
def alignkit_methods():
    return [breathe]
"""
NAP = '[stage.first]\nmethod = "nap"\nnap.stepped = true\n'


@contextmanager
def running(
    folder: Path, stages: str, columns: int = 80, options: tuple[str, ...] = (), **env: str
) -> Iterator[Terminal]:
    (folder / "light.toml").write_text(f'name = "light"\nseed = 1\n{stages}')
    command = [sys.executable, "-m", "alignkit", "recipe", "light.toml", "-p", str(PLUGIN), *options]
    with on_terminal(command, columns, folder, **env) as terminal:
        yield terminal


@pytest.mark.parametrize("columns", [60, pytest.param(120, marks=pytest.mark.slow)])
def test_no_line_is_wider_than_the_terminal_and_no_frame_is_left_behind(tmp_path: Path, columns: int) -> None:
    with running(tmp_path, STEPS.format(steps=20, seconds=0.05), columns) as terminal:
        status = terminal.wait()

    lines = terminal.screen.lines
    assert status == 0
    assert not terminal.screen.overflowed
    assert "[1 of 2] first count" in terminal.raw
    assert not any(line.startswith("[") for line in lines)
    assert sum(line.startswith("first: count begins") for line in lines) == 1


def test_colours_are_left_out_where_nobody_wants_them(tmp_path: Path) -> None:
    with running(tmp_path, STEPS.format(steps=3, seconds=0), NO_COLOR="1") as plain:
        plain.wait()
    with running(tmp_path, STEPS.format(steps=4, seconds=0)) as coloured:
        coloured.wait()

    assert "\x1b[36mwill run" in coloured.raw
    assert "\x1b[3" not in plain.raw


def test_a_rerun_that_changes_nothing_says_so_in_a_line(tmp_path: Path) -> None:
    for _ in range(2):
        with running(tmp_path, STEPS.format(steps=3, seconds=0)) as terminal:
            terminal.wait()

    lines = terminal.screen.lines
    assert lines[:2] == ["running light.toml", "nothing to run: all 2 stages are finished, and reused"]
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["stage", "made", "time"],
        ["first", "Text", "reused"],
        ["second", "Text", "reused"],
    ]


def test_a_key_shows_the_last_sample_and_the_terminal_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "breathe.py").write_text(BREATHE)
    stages = STEPS.format(steps=3, seconds=0).replace("shout", "breathe")
    with running(tmp_path, stages, options=("-p", "breathe.py")) as terminal:
        before = terminal.mode()
        terminal.wait_for("s: show the last sample")
        within = terminal.mode()
        terminal.press("s")
        terminal.wait_for("how far?")
        terminal.press("s")
        terminal.wait_for("s: show the last sample")
        terminal.press("\x03")
        terminal.wait_for("stopping")
        terminal.press("\x03")
        status = terminal.wait()

        assert (status, terminal.mode()) == (130, before)
        assert within != before


def test_an_interrupt_is_acknowledged_at_once_and_the_step_is_ended(tmp_path: Path) -> None:
    with running(tmp_path, STEPS.format(steps=50, seconds=1.0)) as terminal:
        terminal.wait_for("2/50")
        terminal.press("\x03")
        took = terminal.wait_for("stopping after this step; press Ctrl-C again to stop at once and lose the step")
        status = terminal.wait()

    assert took < 0.3
    assert status == 130
    assert "go on with: alignkit recipe light.toml" in "\n".join(terminal.screen.lines)


def test_a_second_interrupt_gives_the_prompt_back_within_a_second_and_leaves_no_process(tmp_path: Path) -> None:
    with running(tmp_path, NAP) as terminal:
        terminal.wait_for("1/2")
        started = psutil.Process(terminal.process.pid).children(recursive=True)
        terminal.press("\x03")
        terminal.wait_for("stopping after this step")
        began = time.monotonic()
        terminal.press("\x03")
        status = terminal.wait()
        took = time.monotonic() - began

    assert started
    assert not psutil.wait_procs(started, timeout=1.0)[1]
    assert (status, took < 1.0) == (130, True)


def test_an_interrupt_while_a_stage_is_starting_ends_it_at_once(tmp_path: Path) -> None:
    with running(tmp_path, '[stage.first]\nmethod = "nap"\n') as terminal:
        terminal.wait_for("nap begins")
        terminal.press("\x03")
        took = terminal.wait_for("stopping; press Ctrl-C again to stop at once")
        status = terminal.wait()

    assert (status, took < 0.3) == (130, True)
