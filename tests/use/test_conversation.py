"""Talking to a policy: on a terminal, in a pipe, and what is saved of it."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from alignkit.cli import main
from alignkit.contract.kinds import Preferences
from alignkit.data.records import Part, read_side
from alignkit.errors import INTERRUPTED
from alignkit.store.runs import KeptRun
from alignkit.training.speaking import Manner, open_speaker
from alignkit.use.conversation import interruptible
from alignkit.use.run_policy import policy_of


def chat(run: KeptRun, said: str, *words: str) -> Result:
    return CliRunner().invoke(main, ["chat", *words, "--runs", str(run.runs)], input=said, prog_name="alignkit")


def test_in_a_pipe_each_line_is_a_prompt_and_each_answer_that_of_the_policy(small_run: KeptRun) -> None:
    done = chat(small_run, "how was the food\nhow was the tea\n", "small:plain", "--temperature", "0")

    found = policy_of(small_run, "plain")
    speaker, manner = open_speaker(found.policy, found.form), Manner(temperature=0)
    prompts = [speaker.asked({"prompt": text}, manner) for text in ("how was the food", "how was the tea")]
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "".join(f"{one.text}\n" for one in speaker.answers(prompts, manner))
    assert "asked as plain text, each line by itself; /help lists commands" in done.stderr


def test_what_streams_is_what_is_answered_at_once(small_run: KeptRun) -> None:
    found = policy_of(small_run, "plain")
    speaker, manner = open_speaker(found.policy, found.form), Manner(max_new_tokens=24, temperature=1.5, seed=5)
    prompt = speaker.asked({"prompt": "how was the food"}, manner)

    streamed = "".join(speaker.stream(prompt, manner, 7))

    (answer,) = speaker.answers([prompt], manner, 7)
    assert streamed == answer.text
    assert streamed != "".join(speaker.stream(prompt, manner, 8))


def test_a_policy_that_learnt_from_chats_is_told_what_was_said_before(small_run: KeptRun) -> None:
    found = policy_of(small_run, "chatty")
    speaker, manner = open_speaker(found.policy, found.form), Manner(max_new_tokens=8, temperature=0)
    first = [{"role": "user", "content": "how was the food"}]
    (answer,) = speaker.answers([speaker.asked({"prompt": first}, manner)], manner)
    more = [*first, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "and the tea"}]
    (second,) = speaker.answers([speaker.asked({"prompt": more}, manner)], manner)
    words = ("small:chatty", "--temperature", "0", "--max-new-tokens", "8")

    done = chat(small_run, "how was the food\nand the tea\n/clear\nhow was the food\n", *words)

    assert done.stdout == f"{answer.text}\n{second.text}\n{answer.text}\n"
    assert "### User:" in speaker.asked({"prompt": "hello"}, manner).text


def test_two_policies_answer_with_their_scores_and_the_better_one_is_saved(small_run: KeptRun, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    words = ("small:plain", "--vs", "thin", "--save", str(file), "--max-new-tokens", "6")

    done = chat(small_run, "how was the food\n/save\n2\nhow was the tea\n/save\n1\n", *words)

    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("plain:\n")
    assert "\nthin:\n" in done.stdout
    assert done.stdout.count("(reward ") == 4
    assert done.stdout.count(", gold ") == 4
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["how was the food", "how was the tea"]
    said = done.stdout.split("thin:\n")
    assert said[1].startswith(f"{rows[0]['chosen']}\n(")
    assert said[2].startswith(f"{rows[1]['rejected']}\n(")
    part = Part(name="mine", paths=(file,), side="train")
    read = list(read_side((part,), "Preferences", Preferences.columns, held_out=False))
    assert [dict(row) for row in read] == rows


def test_again_gives_the_second_answer_that_a_preference_needs(small_run: KeptRun, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("{}")
    words = ("small:chatty", "--save", str(file), "--max-new-tokens", "6", "--temperature", "2")

    done = chat(small_run, "/again\n/save\nhello\n/save\n/again\n/save\nx\n/save\n1\n/what\n", *words)

    assert done.stderr.splitlines()[1:] == [
        "nothing has been asked yet",
        *["a preference needs two answers to one prompt: /again gives another one, --vs asks two policies"] * 2,
        "nothing is saved: 1 or 2 was expected",
        f"saved to {file}",
        "there is no command /what; /help lists them",
    ]
    first, second = done.stdout.splitlines()[:2]
    row = json.loads(file.read_text().splitlines()[1])
    assert row["prompt"] == [{"role": "user", "content": "hello"}]
    assert first == row["chosen"][0]["content"]
    assert second == row["rejected"][0]["content"]


def test_a_prompt_that_is_too_long_is_told_and_the_conversation_goes_on(small_run: KeptRun) -> None:
    done = chat(small_run, "rain " * 300 + "\nhello\n", "small:plain", "--max-new-tokens", "4")

    assert done.exit_code == 0
    assert "of an answer are more than 256; ask with less, or lower --max-new-tokens" in done.stderr
    assert done.stdout


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *words: str, folder: Path) -> None:
        self.ours, theirs = pty.openpty()
        more = {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "alignkit", *words],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=os.environ | more, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def until(self, text: str, seconds: float = 60.0) -> str:
        """Read until a text is there, and return what came before it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come in: {self.seen!r}"
            if select.select([self.ours], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.ours, 4096).decode()
                except OSError:  # what Linux tells once the other end is closed
                    assert text in self.seen, f"{text!r} did not come in: {self.seen!r}"
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())


@contextmanager
def on_a_terminal(run: KeptRun, folder: Path, *words: str) -> Iterator[Terminal]:
    """Talk to a run's policies on a terminal, once it asks for the first line."""
    terminal = Terminal("chat", *words, "--runs", str(run.runs), folder=folder)
    try:
        terminal.until("> ")
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.ours)


@pytest.mark.slow
def test_on_a_terminal_answers_stand_side_by_side_and_the_better_one_is_saved_by_a_key(
    small_run: KeptRun, tmp_path: Path
) -> None:
    with on_a_terminal(small_run, tmp_path, "small:plain", "--vs", "thin", "--temperature", "2") as terminal:
        terminal.type("how was the food\n")
        beside = terminal.until("gold")
        terminal.until("> ")
        terminal.type("/save\n")
        terminal.until("which is better: 1 (plain) or 2 (thin)? ")
        terminal.type("1\n")
        terminal.until("saved to preferences.jsonl")
        terminal.until("> ")
        terminal.type("/quit\n")

        assert terminal.process.wait(60) == 0
    assert any("plain" in line and "thin" in line for line in beside.splitlines())
    row = json.loads((tmp_path / "preferences.jsonl").read_text())
    assert row["prompt"] == "how was the food"


@pytest.mark.slow
def test_a_signal_while_it_waits_for_a_line_ends_it(small_run: KeptRun, tmp_path: Path) -> None:
    with on_a_terminal(small_run, tmp_path, "small:plain") as terminal:
        while psutil.Process(terminal.process.pid).status() != psutil.STATUS_SLEEPING:
            time.sleep(0.05)
        terminal.process.send_signal(signal.SIGINT)

        assert terminal.process.wait(60) == INTERRUPTED


def test_a_signal_while_it_answers_ends_the_answer_alone() -> None:
    before = signal.getsignal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)

    assert signal.getsignal(signal.SIGINT) == before
