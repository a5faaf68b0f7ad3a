"""Files of answers: whole, gone on with, and readable as rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from alignkit.cli import main
from alignkit.contract.kinds import Demonstrations
from alignkit.contract.reward_function import Answer
from alignkit.data.records import Part, read_side
from alignkit.errors import DataError
from alignkit.store.runs import KeptRun
from alignkit.training.speaking import Manner, open_speaker
from alignkit.use import answer_file
from alignkit.use.answer_file import AnswerFile, read_prompts
from alignkit.use.run_policy import policy_of
from alignkit.use.run_rewards import OpenReward

PROMPTS = [f"how was the {word}" for word in ("food", "tea", "room", "lake", "song")]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(answer_file, "ANSWERS_AT_ONCE", 4)
    file = tmp_path / "prompts.csv"
    file.write_text("prompt\n" + "".join(f"{one}\n" for one in PROMPTS))
    return file


def generate(run: KeptRun, *words: str) -> Result:
    more = ("--runs", str(run.runs), "--max-new-tokens", "6")
    return CliRunner().invoke(main, ["generate", *words, *more], prog_name="alignkit")


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_prompt_has_its_answers_with_scores_and_they_are_read_as_demonstrations(
    small_run: KeptRun, asked: Path
) -> None:
    done = generate(small_run, "small:plain", str(asked), "-o", "out.jsonl", "--answers", "2", "--score")

    assert done.exit_code == 0, done.stderr
    assert done.stdout == "answers: out.jsonl\n"
    assert done.stderr.splitlines() == [f"{count} of 10 answers" for count in (0, 4, 8, 10)]
    rows = rows_of(Path("out.jsonl"))
    assert [row["prompt"] for row in rows] == [one for one in PROMPTS for _ in range(2)]
    assert all(set(row["scores"]) == {"reward", "gold"} for row in rows)
    part = Part(name="out", paths=(Path("out.jsonl"),), side="train")
    read = list(read_side((part,), "Demonstrations", Demonstrations.columns, held_out=False))
    assert [(row["prompt"], row["completion"]) for row in read] == [(row["prompt"], row["completion"]) for row in rows]


@pytest.mark.parametrize("left", [0, 3, 4, 9])
def test_it_goes_on_where_it_stopped_as_if_it_had_not(small_run: KeptRun, asked: Path, left: int) -> None:
    words = ("small:plain", str(asked), "--answers", "2", "--temperature", "2")
    generate(small_run, *words, "-o", "whole.jsonl")
    lines = Path("whole.jsonl").read_text().splitlines(keepends=True)
    Path("part.jsonl").write_text("".join(lines[:left]) + lines[left][:9])

    done = generate(small_run, *words, "-o", "part.jsonl")

    assert done.stderr.splitlines()[0] == f"{left} of 10 answers"
    assert Path("part.jsonl").read_text() == Path("whole.jsonl").read_text()
    assert len({row["completion"] for row in rows_of(Path("whole.jsonl"))}) > 1


def test_other_answers_in_the_file_are_left_alone(small_run: KeptRun, asked: Path) -> None:
    generate(small_run, "small:plain", str(asked), "-o", "out.jsonl", "--greedy")
    before = Path("out.jsonl").read_text()

    other = generate(small_run, "small:plain", str(asked), "-o", "out.jsonl", "--seed", "4")
    asked.write_text("prompt\nhello\n")
    fewer = generate(small_run, "small:plain", str(asked), "-o", "out.jsonl", "--greedy")

    assert (other.exit_code, fewer.exit_code) == (2, 2)
    assert "error: out.jsonl: line 1 is no answer to the same prompt by plain " in other.stderr
    assert "temperature=1 max_new_tokens=6 seed=4; name another file, or remove this one" in other.stderr
    assert fewer.stderr == (
        "error: out.jsonl: the file has 5 rows, and 1 are asked for; name another file, or remove this one\n"
    )
    assert Path("out.jsonl").read_text() == before


def test_a_policy_of_chats_is_asked_by_chats_and_one_of_text_refuses_them(small_run: KeptRun, asked: Path) -> None:
    chats = asked.with_suffix(".jsonl")
    chats.write_text(json.dumps({"prompt": [{"role": "user", "content": PROMPTS[0]}]}) + "\n")

    text, chat = (generate(small_run, "small:chatty", str(f), "-o", f"{f.stem}{f.suffix}.out") for f in (asked, chats))
    refused = generate(small_run, "small:plain", str(chats), "-o", "plain.jsonl")

    assert (text.exit_code, chat.exit_code) == (0, 0), text.stderr
    first, second = (rows_of(Path(f"prompts.{kind}.out"))[0] for kind in ("csv", "jsonl"))
    assert first["prompt"] == second["prompt"] == [{"role": "user", "content": PROMPTS[0]}]
    assert first["completion"][0]["role"] == "assistant"
    assert refused.exit_code == 65
    assert refused.stderr == (
        "error: prompt 1: the prompt is a chat, and the policy has learnt from plain text; ask with text alone, or "
        "take a stage that has learnt from chats\n"
    )


def facts_of(answers: Sequence[Answer]) -> list[float]:
    """Score by a column of the row."""
    return [float(answer.row["fact"]) for answer in answers]


def test_a_reward_gets_the_columns_that_the_run_keeps_and_says_where_they_lack(small_run: KeptRun, asked: Path) -> None:
    asked.write_text("prompt,fact,other\nhow,3,x\nwhy,4,y\n")
    found = policy_of(small_run, "plain")
    speaker, reward = open_speaker(found.policy, found.form), OpenReward("facts", facts_of)
    file = AnswerFile(speaker, [reward], Manner(max_new_tokens=4), 1, "plain")

    list(file.write(Path("out.jsonl"), read_prompts(str(asked), ["fact", "gone"])))

    assert [row["scores"] for row in rows_of(Path("out.jsonl"))] == [{"facts": 3.0}, {"facts": 4.0}]
    with pytest.raises(DataError) as raised:
        list(file.write(Path("less.jsonl"), read_prompts(str(asked))))
    assert str(raised.value) == (
        "the reward facts cannot score the answers (KeyError: 'fact'); "
        "give the prompts the columns that it looks at, or leave out --score"
    )
