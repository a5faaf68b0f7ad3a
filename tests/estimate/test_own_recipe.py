"""`alignkit init` of one's own files: the recipe fits them, and runs without an edit."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from alignkit.cli import main
from alignkit.demo.reviews import Kind, rows
from alignkit.errors import AlignkitError, DataError
from alignkit.estimate.own_recipe import Wish, own_recipe
from alignkit.plugins import load_plugins
from alignkit.recipe.toml import parse
from alignkit.sources.own_files import own_file

Init = Callable[..., Result]
Row = dict[str, Any]


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> Init:
    """Call `alignkit init` in a folder of the test's own, with small files and a model beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNKIT_PLUGINS", raising=False)
    Path("model").symlink_to(model_folder)
    lines("demos.jsonl", [{"question": r["prompt"], "answer": r["completion"]} for r in some("demonstrations")])
    table("pairs.csv", ["Prompt text", "Better answer", "Worse answer"], pairs())
    lines("ratings.jsonl", [{**r, "label": place % 2 == 0} for place, r in enumerate(some("demonstrations"))])
    Path("corpus.txt").write_text("\n\n".join(r["text"] for r in some("text")), "utf-8")
    Path("prompts.txt").write_text("\n".join(r["prompt"] for r in some("prompts")), "utf-8")
    return lambda *words: CliRunner().invoke(main, ["init", *words], prog_name="alignkit")


def some(kind: Kind) -> list[Row]:
    return list(islice(rows(kind, "train"), 60))


def pairs() -> list[list[str]]:
    return [[r["prompt"], r["chosen"], r["rejected"]] for r in some("preferences")]


def lines(name: str, given: Sequence[Row]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in given), "utf-8")


def table(name: str, head: Sequence[str], given: Sequence[Sequence[str]]) -> None:
    with Path(name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *given])


def written(name: str = "mine.toml") -> dict[str, Any]:
    return dict(parse(Path(name).read_text("utf-8"), name))


def methods() -> dict[str, str]:
    return {name: stage["method"] for name, stage in written()["stage"].items()}


@pytest.mark.parametrize(
    ("words", "stages"),
    [
        (["demos.jsonl"], {"finetune": "sft", "scores": "evaluate"}),
        (["demos.jsonl", "pairs.csv"], {"finetune": "sft", "align": "dpo", "scores": "evaluate"}),
        (
            ["--online", "demos.jsonl", "pairs.csv", "prompts:prompts.txt"],
            {"finetune": "sft", "reward": "reward", "align": "ppo", "scores": "evaluate"},
        ),
        (
            ["--online", "demos.jsonl", "pairs.csv", "ratings.jsonl"],
            {"finetune": "sft", "reward": "reward", "align": "ppo", "judged": "kto", "scores": "evaluate"},
        ),
        (["ratings.jsonl"], {"align": "kto", "scores": "evaluate"}),
        (["text:corpus.txt"], {"pretrain": "clm"}),
        (["text:corpus.txt", "demos.jsonl"], {"pretrain": "clm", "finetune": "sft", "scores": "evaluate"}),
    ],
)
def test_the_chain_is_what_the_files_allow(init: Init, words: list[str], stages: dict[str, str]) -> None:
    result = init("mine.toml", "--model", "model", *words)

    assert result.exit_code == 0, result.stderr
    assert methods() == stages
    assert CliRunner().invoke(main, ["plan", "mine.toml"]).exit_code == 0


def test_the_recipe_says_what_it_took_and_why(init: Init) -> None:
    result = init("mine.toml", "--model", "model", "demos.jsonl", "pairs.csv")

    recipe, text = written(), Path("mine.toml").read_text("utf-8")
    assert result.stdout == (
        "demos.jsonl: demonstrations\npairs.csv: preferences\n"
        "mine.toml is written; see what it does: alignkit plan mine.toml\n"
    )
    assert recipe["sources"]["pairs"]["columns"] == {
        "prompt": "Prompt text",
        "chosen": "Better answer",
        "rejected": "Worse answer",
    }
    assert recipe["sources"]["prompts"]["prompts"] == "demos.jsonl"
    assert {source.get("held_out") for name, source in recipe["sources"].items() if name in ("demos", "pairs")} == {0.2}
    assert recipe["stage"]["scores"]["inputs"]["policies"] == ["base", "align"]
    assert recipe["defaults"] == {"max_length": 224}
    assert recipe["stage"]["scores"]["evaluate"]["max_new_tokens"] % 16 == 0
    said = [line for line in text.splitlines() if "=" in line and not line.startswith(("#", "name", "seed", "inputs"))]
    assert [line for line in said if "  # " not in line] == []


def test_lengths_are_estimated_where_the_tokenizer_is_elsewhere(init: Init) -> None:
    result = init("mine.toml", "--model", "hf:nobody/model-7B", "demos.jsonl")

    assert result.exit_code == 0, result.stderr
    assert "estimated from characters: the model's tokenizer is not on this machine" in Path("mine.toml").read_text()
    assert written()["defaults"]["lora"] == {"rank": 16, "alpha": 32}


def test_a_model_that_reads_less_than_the_rows_need_is_not_asked_for_more(init: Init) -> None:
    lines("long.jsonl", [{"prompt": f"Say {n} words.", "completion": "word " * 400} for n in range(40)])

    result = init("mine.toml", "--model", "model", "long.jsonl")

    assert result.exit_code == 0, result.stderr
    assert written()["defaults"] == {"max_length": 256, "max_lost": 1.0}


def test_what_two_kinds_fit_is_asked_or_refused(init: Init) -> None:
    result = init("mine.toml", "--model", "model", "corpus.txt")

    assert (result.exit_code, Path("mine.toml").exists()) == (2, False)
    assert result.stderr == (
        "error: corpus.txt: the file may hold prompts or text; say which: prompts:corpus.txt or text:corpus.txt\n"
    )
    assert own_file("corpus.txt", lambda file, kinds: kinds[1]).word == "text"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demos.jsonl"], "--model: no model is named; write hf:OWNER/NAME, a folder, or builtin:tiny for a trial"),
        (["--model", "owner/name", "demos.jsonl"], "--model: there is no 'owner/name'; "
         "if it is on the hub: --model hf:owner/name"),
        (["--model", "model", "owner/rows"], "owner/rows: there is no such file; "
         'if it lies on the hub, write a source of it: "hf:owner/rows"'),
        (["--model", "model", "prompts:prompts.txt"], "prompts alone teach nothing; "
         "give demonstrations, pairs, ratings or text, too"),
        (["--model", "model", "demos.jsonl", "demonstrations:ratings.jsonl"], "demos.jsonl holds chats, and "
         "ratings.jsonl plain text; write all rows in one form, or give those of one"),
        (["--model", "model", "--online", "demos.jsonl"], "--online: a reward is learnt from pairs, "
         "and none are given; leave it out, or give pairs"),
    ],
)  # fmt: skip
def test_what_cannot_become_a_recipe_is_refused(init: Init, words: list[str], message: str) -> None:
    result = init("mine.toml", *words)

    assert (result.stderr, Path("mine.toml").exists()) == (f"error: {message}\n", False)


def test_columns_that_say_nothing_are_listed(init: Init) -> None:
    table("odd.csv", ["a", "b"], [["1", "2"]])

    with pytest.raises(DataError) as refused:
        own_file("odd.csv", None)

    assert str(refused.value) == (
        "odd.csv: the first row is in no format that is known; its columns are 'a', 'b'; "
        "name them prompt and completion, or prompt, chosen and rejected"
    )


def test_without_a_method_for_pairs_a_reward_is_learnt(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")

    init("mine.toml", "--model", "model", "demos.jsonl", "pairs.csv")

    assert methods() == {"finetune": "sft", "reward": "reward", "align": "ppo", "scores": "evaluate"}


def test_bad_rows_are_told_before_a_recipe_is_written(init: Init, tmp_path: Path) -> None:
    lines("bad.jsonl", [{"prompt": "Why?", "completion": "So."}, {"prompt": "Why?", "completion": None}])
    wish = Wish(tmp_path / "mine.toml", "model", [own_file("bad.jsonl", None)], load_plugins(), tmp_path)

    with pytest.raises(AlignkitError, match=r"bad.jsonl:2: "):
        own_recipe(wish)


def test_a_source_that_may_be_on_the_hub_is_told(init: Init) -> None:
    init("mine.toml", "--model", "model", "demos.jsonl")
    Path("mine.toml").write_text(Path("mine.toml").read_text().replace('"model"', '"owner/name"'))

    result = CliRunner().invoke(main, ["plan", "mine.toml"])

    assert "source 'base': there is no 'owner/name'; if it is on the hub, write \"hf:owner/name\"" in result.stderr


@pytest.mark.slow
def test_three_commands_lead_from_two_files_to_a_report(init: Init, tmp_path: Path) -> None:
    for words in (
        ["init", "mine.toml", "--model", "builtin:tiny", "demos.jsonl", "pairs.csv"],
        ["check", "mine.toml"],
        ["recipe", "mine.toml"],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "alignkit", *words], env=os.environ, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr

    report = (tmp_path / "runs" / "mine" / "latest" / "report.html").read_text("utf-8")
    assert "win rate align over base" in report
