"""The audit: what is in a source, what is refused, what is told, and `alignkit check`."""

import gzip
import json
import os
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner

from alignkit.cli import main
from alignkit.contract.kinds import Demonstrations, Preferences, Ratings, Records, Text
from alignkit.errors import DataError, RecipeError
from alignkit.sources.audit import Audit, audit
from alignkit.sources.from_files import source_of
from alignkit.sources.source import RecordOptions
from tests.data.test_records import put, records

PAIR = {"prompt": "a?", "chosen": " b.", "rejected": " c."}


def audited(folder: Path, kind: type[Records], rows: list[Any], **options: Any) -> Audit:
    said = RecordOptions(**options)
    return audit(records(kind, put(folder, rows), skip=said.on_bad_rows == "skip"), said, folder / "bad.jsonl")


def remarks(found: Audit) -> list[str]:
    return [remark.problem for remark in found.remarks()]


def test_rows_are_counted_by_side_and_prompt(tmp_path: Path) -> None:
    rows = [{"text": f"text {number // 2} {number}"} for number in range(10)]

    found = audit(records(Text, put(tmp_path, rows), held_out=0.5), RecordOptions())

    assert found.rows + found.held_out == found.prompts == 10
    assert 0 < found.held_out < 10
    assert found.longest == 8


def test_twins_and_pairs_turned_round_are_counted(tmp_path: Path) -> None:
    turned = {"prompt": "a?", "chosen": " c.", "rejected": " b."}
    near = {"prompt": "A?", "chosen": " b.", "rejected": "  c."}

    found = audited(tmp_path, Preferences, [PAIR, PAIR, turned, near])

    assert (found.duplicates, found.near, found.contradictions) == (1, 1, 1)


def test_answers_that_are_judged_twice_and_pairs_that_prefer_neither_are_counted(tmp_path: Path) -> None:
    judged = [{"prompt": "a?", "completion": " b.", "label": label} for label in (True, False, True)]
    rated = [{"prompt": "a?", "completion": " b.", "rating": rating} for rating in (1, 5)]
    tied = [PAIR, {"prompt": "d?", "chosen": " e.", "rejected": " f.", "p_chosen": 0.5}]

    labels, ratings, pairs = (
        audited(tmp_path, kind, rows) for kind, rows in ((Ratings, judged), (Ratings, rated), (Preferences, tied))
    )

    assert (labels.contradictions, ratings.contradictions, pairs.ties) == (1, 1, 1)
    assert "1 answers are judged otherwise by another one" in remarks(labels)
    assert "1 pairs prefer neither answer" in remarks(pairs)


def test_prompts_on_both_sides_are_counted(tmp_path: Path) -> None:
    train = put(tmp_path, [{"prompt": f"{n}", "completion": "x"} for n in range(5)], "train.jsonl")
    test = put(tmp_path, [{"prompt": f"{n}", "completion": "y"} for n in range(3, 7)], "test.jsonl")
    one, other = records(Demonstrations, train), records(Demonstrations, test)
    parts = (one.parts[0].model_copy(update={"side": "train"}), other.parts[0].model_copy(update={"side": "held_out"}))

    found = audit(one.model_copy(update={"parts": parts}), RecordOptions())

    assert found.overlap == 2
    assert remarks(found) == ["2 of 4 held-out rows have a prompt that is learnt from, too"]


def test_a_bias_to_length_and_a_single_label_are_told(tmp_path: Path) -> None:
    long = [{"prompt": f"{n}", "chosen": " long answer", "rejected": " no"} for n in range(20)]
    good = [{"prompt": f"{n}", "completion": " yes", "label": True} for n in range(4)]

    pairs, ratings = audited(tmp_path, Preferences, long), audited(tmp_path, Ratings, good)

    assert pairs.longer_wins == 1.0
    assert "the longer answer wins in 100% of the rows" in remarks(pairs)
    assert "every label is true" in remarks(ratings)


def test_empty_lines_of_raw_text_are_counted_and_stay(tmp_path: Path) -> None:
    found = audited(tmp_path, Text, [{"text": "a"}, {"text": " "}, {"text": ""}])

    assert (found.rows + found.held_out, found.blank) == (3, 2)


def test_text_like_special_tokens_is_told(tmp_path: Path) -> None:
    rows = [{"text": "a <|im_end|> b"}, {"text": "a < b > c"}, {"text": "x</s>y<|im_end|>"}]

    found = audited(tmp_path, Text, rows)

    assert (found.control, found.controls) == (2, {"<|im_end|>": 2, "</s>": 1})
    assert remarks(found)[-1] == (
        "2 rows hold text that a tokenizer may take for a special token (<|im_end|> in 2, </s> in 1)"
    )


def test_why_nothing_is_held_out_is_told(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b"}]

    assert remarks(audited(tmp_path, Text, rows))[0] == "no rows are held out: 2 texts are few for a share of 0.05"
    assert remarks(audited(tmp_path, Text, rows, held_out=0.0))[0] == "no rows are held out: held_out is 0"


def test_transcripts_that_could_be_chats_are_told(tmp_path: Path) -> None:
    said = "\n\nHuman: a?\n\nAssistant:"

    found = audited(tmp_path, Preferences, [{"chosen": f"{said} b.", "rejected": f"{said} c."}])

    assert "transcripts are read as plain text" in remarks(found)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([{"role": "bot", "content": "a"}], "'messages' has a turn of the role 'bot'"),
        ([{"role": "assistant", "content": "a"}], "'messages' begins with an answer"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
            "'messages' has an answer that is empty",
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
            "'messages' has a system turn that is not its first",
        ),
    ],
)
def test_a_chat_that_is_none_is_refused(tmp_path: Path, messages: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        audited(tmp_path, Demonstrations, [{"messages": messages}])


def test_the_first_five_bad_rows_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    rows = [PAIR, *[{**PAIR, "rejected": ""}] * 7]

    with pytest.raises(DataError) as refused:
        audited(tmp_path, Preferences, rows)

    places = [f"{tmp_path}/rows.jsonl:{line}" for line in range(2, 7)]
    assert [problem.where for problem in refused.value.problems] == [*places, "source 'mine'"]
    assert str(refused.value.problems[-1]) == (
        "source 'mine': 7 of 8 rows are bad; sources.mine.on_bad_rows = \"skip\" leaves them out and counts them"
    )


@pytest.mark.parametrize("command", ["plan", "check", "recipe"])
def test_bad_rows_at_the_beginning_are_listed_and_counted_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = [{"prompt": f"{number}", "completion": ""} for number in range(7)]
    put(tmp_path, [{"prompt": "a", "completion": "b"}, *bad, *[{"prompt": "c", "completion": "d"}] * 40, *bad])
    Path("r.toml").write_text(
        '[sources]\nbase = { policy = "builtin:tiny" }\nmine = { demonstrations = "rows.jsonl" }\n[stage.sft]\n'
    )

    result = CliRunner().invoke(main, [command, "r.toml"])

    assert result.exit_code == 65
    assert [line for line in result.stderr.splitlines() if line.startswith("error")] == [
        *(
            f"error: {tmp_path}/rows.jsonl:{line}: 'completion' is empty; correct the row or leave it out"
            for line in range(2, 7)
        ),
        "error: source 'mine': 14 of 55 rows are bad; "
        'sources.mine.on_bad_rows = "skip" leaves them out and counts them',
    ]


def test_skipped_rows_are_counted_kept_and_told(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "rejected": ""}, {**PAIR, "prompt": "other"}]

    found = audited(tmp_path, Preferences, rows, on_bad_rows="skip", max_bad=0.5)

    assert (found.rows, found.bad) == (2, 1)
    kept = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [line["row"]["rejected"] for line in kept] == [""]
    assert remarks(found)[0].startswith("1 of 3 rows are bad and left out, such as ")
    read = records(Preferences, tmp_path / "rows.jsonl", skip=True)
    assert len(list(read.train())) == 2


def test_more_bad_rows_than_max_bad_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        audited(tmp_path, Preferences, [PAIR, *[{**PAIR, "rejected": ""}] * 2], on_bad_rows="skip")

    assert str(refused.value.problems[-1]) == (
        "source 'mine': 2 of 3 rows are bad, more than max_bad 0.001; raise sources.mine.max_bad"
    )


def test_lines_that_hold_no_row_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n\xff\xfe\n[1]\n{"text": "b"}\n')
    options = RecordOptions(on_bad_rows="skip", max_bad=1)

    found = audit(records(Text, path, skip=True), options, tmp_path / "bad.jsonl")

    assert (found.rows, found.bad) == (2, 3)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (PAIR, "preferences"),
        ({"prompt": "a", "completion": "b", "label": True}, "ratings"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "demonstrations"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "demonstrations"),
        ({"messages": [{"role": "user", "content": "a"}]}, "prompts"),
        ({"instruction": "a", "input": "", "output": "b"}, "demonstrations"),
        ({"instruction": "a", "input": "", "output": ["b", "c"]}, "preferences"),
        ({"prompt": "a", "completion": "b", "label": "poetry"}, "demonstrations"),
        ({"text": "a", "label": "sports"}, "text"),
        ({"text": "a", "label": 1}, "ratings"),
        ({"instruction": "a", "output": "b", "rating": "PG-13"}, "demonstrations"),
        ({"prompt": "a"}, "prompts"),
        ({"text": "a"}, "text"),
    ],
)
def test_a_file_tells_what_it_holds(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    path = put(tmp_path, [row])

    assert source_of([path], path.name).word == kind


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        source_of([put(tmp_path, '{"text": "a"}'.encode("utf-16"))], "rows")


def test_a_file_in_no_format_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = put(tmp_path, b"Frage;Antwort\na;b\n", "rows.csv")

    with pytest.raises(DataError) as refused:
        source_of([path], "rows.csv")

    assert str(refused.value) == (
        f"{path}: the first row is in no format that is known; its columns are 'Frage', 'Antwort'; say what it holds "
        "with --as, or which columns are which in a recipe (sources.NAME.columns)"
    )


def test_one_prompt_cannot_be_on_both_sides(tmp_path: Path) -> None:
    found = audited(tmp_path, Preferences, [PAIR, {**PAIR, "chosen": " d."}])

    assert remarks(found)[0] == (
        "no rows are held out: all rows have the same prompt, and a prompt is on one side only"
    )


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'prompts'"):
        source_of([put(tmp_path, [PAIR])], "rows", "promts")


def checked(*words: str) -> Any:
    """Look at a recipe, else at files."""
    return CliRunner().invoke(main, ["check" if words[0].endswith(".toml") else "data", *words])


def test_check_tells_what_is_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, [PAIR, {**PAIR, "prompt": "b"}])

    result = checked("rows.jsonl")

    assert result.exit_code == 0
    assert result.stdout.splitlines()[:3] == [
        "rows.jsonl: read as plain preferences (prompt-chosen-rejected)",
        "  rows            2 to learn from, 0 held out",
        "  prompts         2 differ",
    ]


@pytest.mark.parametrize("what", ["data", "data/*.jsonl", "data/**/*.jsonl"])
def test_check_reads_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        put(tmp_path / "data", [PAIR, {**PAIR, "prompt": name}], f"{name}.jsonl")

    (found,) = json.loads(checked(what, "--json").stdout)["sources"]

    assert (found["rows"] + found["held_out"], found["duplicates"]) == (4, 1)


def test_a_file_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    result = checked("rows.jsonl.gz")

    assert (result.exit_code, result.stderr) == (
        65,
        "error: rows.jsonl.gz: there is no such file; check its path\n",
    )


def test_check_ends_with_the_status_of_bad_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, [PAIR, {**PAIR, "chosen": ""}])

    result = checked("rows.jsonl")

    assert result.exit_code == 65
    assert result.stderr == (f"error: {tmp_path}/rows.jsonl:2: 'chosen' is empty; correct the row or leave it out\n")


def test_check_reads_all_sources_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    result = checked("rlhf.toml", "--rows-only", "--json")

    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert [one["source"] for one in told["sources"]] == ["corpus", "demos", "pairs", "prompts"]
    assert all(one["rows"] > 0 and one["held_out"] > 0 for one in told["sources"])


WORDS = [f"word{number}" for number in range(30)]


def test_words_that_decide_are_found_and_noise_is_not(tmp_path: Path) -> None:
    random = Random(3)

    def pair(number: int, chosen: str, rejected: str) -> dict[str, str]:
        words = [" ".join(random.sample(WORDS, k=4)) for _ in range(2)]
        return {"prompt": f"{number}", "chosen": f" {words[0]} {chosen}", "rejected": f" {words[1]} {rejected}"}

    told = [pair(number, "good", "bad") for number in range(400)]
    noise = [pair(number, "yes", "yes") for number in range(400)]

    assert audited(tmp_path, Preferences, told).words_win == 1.0
    found = audited(tmp_path, Preferences, noise).words_win
    assert found is not None
    assert abs(found - 0.5) < 0.15


def test_of_a_few_pairs_nothing_is_measured(tmp_path: Path) -> None:
    assert audited(tmp_path, Preferences, [PAIR]).words_win is None


def test_fix_writes_good_rows_once_and_over_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, [PAIR, PAIR, {**PAIR, "chosen": ""}, {**PAIR, "prompt": "b"}])

    first, again = checked("rows.jsonl", "--fix", "good.jsonl"), checked("rows.jsonl", "--fix", "rows.jsonl")

    assert first.stderr.splitlines()[0] == "good.jsonl has 2 rows; 2 are left out (bad or duplicate)"
    assert [json.loads(line) for line in Path("good.jsonl").read_text().splitlines()] == [PAIR, {**PAIR, "prompt": "b"}]
    assert again.stderr == "error: rows.jsonl: there is such a file already; give --fix another name\n"
    assert checked("good.jsonl").exit_code == 0


def test_what_a_tokenizer_cannot_take_is_told_beside_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    put(tmp_path, [{"messages": turns, "tools": [{"type": "function"}]}])
    Path("r.toml").write_text(
        '[sources]\nbase = { policy = "builtin:tiny" }\nchats = { demonstrations = "rows.jsonl" }\n[stage.sft]\n'
    )

    result = checked("r.toml")

    assert result.exit_code == 2
    assert result.stdout.startswith("chats: read as chat demonstrations (messages), tools\n")
    assert result.stderr == (
        f"error: stage 'sft', {tmp_path / 'rows.jsonl'}:1: the row has tools, and the chat template has no place for "
        'them; take the column tools out, or give the source of the policy another template: chat_template = "FILE"\n'
    )


def test_a_recipe_is_no_data_and_rows_are_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, [PAIR])

    of_recipe = CliRunner().invoke(main, ["data", "rlhf.toml"])
    of_rows = CliRunner().invoke(main, ["check", "rows.jsonl"])

    assert of_recipe.stderr == "error: rlhf.toml: this is a recipe; look at it with: alignkit check rlhf.toml\n"
    assert of_rows.stderr == (
        "error: rows.jsonl: these are rows, and no recipe; look at them with: alignkit data rows.jsonl\n"
    )


def test_several_files_are_looked_at_together_and_fixed_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, [PAIR], "a.jsonl")
    put(tmp_path, [PAIR, {**PAIR, "prompt": "b"}], "b.jsonl")

    found = json.loads(CliRunner().invoke(main, ["data", "a.jsonl", "b.jsonl", "--json"]).stdout)["sources"]
    refused = CliRunner().invoke(main, ["data", "a.jsonl", "b.jsonl", "--fix", "c.jsonl"])

    assert [one["rows"] + one["held_out"] for one in found] == [1, 2]
    assert refused.stderr == "error: a.jsonl b.jsonl: --fix writes one file of one; fix them one by one\n"


NASTY = Path(os.environ.get("ALIGNKIT_DATA", "")) / "nasty"


@pytest.mark.real
def test_files_that_break_loaders_are_read_or_refused_with_a_reason() -> None:
    told = {}
    for entry in json.loads((NASTY / "INDEX.json").read_text("utf-8")):
        result = checked(str(NASTY / entry["file"]), "--json")
        assert result.exception is None or isinstance(result.exception, SystemExit), entry["file"]
        assert result.exit_code in (0, 65), entry["file"]
        told[entry["file"]] = json.loads(result.stdout) if result.exit_code == 0 else result.stderr

    assert {name: len(found["sources"]) for name, found in told.items() if isinstance(found, dict)} == {
        name: 1 for name, found in told.items() if isinstance(found, dict)
    }
    refused = {name for name, found in told.items() if isinstance(found, str)}
    assert refused == {
        "real_empty_completions.jsonl",
        "real_zero_byte.jsonl",
        "real_empty_response_pairs.jsonl",
        "utf16.jsonl",
        "truncated.jsonl.gz",
        "nul_control.jsonl",
        "mixed_schema.jsonl",
        "type_conflict.jsonl",
        "deep_nesting.jsonl",
    }


def test_a_source_that_was_looked_at_under_another_name_has_its_own(tmp_path: Path) -> None:
    put(tmp_path, [{"prompt": f"{n}", "completion": "x"} for n in range(8)])
    told = []
    for name in ("one", "other"):
        recipe = tmp_path / "r.toml"
        recipe.write_text(f'[sources.base]\npolicy = "builtin:tiny"\n[sources.{name}]\ndemonstrations = "rows.jsonl"\n'
                          "[stage.sft]\n")  # fmt: skip
        runs = str(tmp_path / "runs")
        told += json.loads(checked(str(recipe), "--json", "--rows-only", "--runs", runs).stdout)["sources"]

    assert [one["source"] for one in told] == ["one", "other"]


@pytest.mark.real
def test_rows_that_a_test_file_shares_with_training_are_counted(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[sources.base]\npolicy = "builtin:tiny"\n'
        f'[sources.demos]\ndemonstrations = "{NASTY}/contaminated_train.jsonl"\n'
        f'held_out = "{NASTY}/contaminated_test.jsonl"\n'
        "[stage.sft]\n"
    )

    (found,) = json.loads(checked(str(recipe), "--json", "--rows-only", "--runs", str(tmp_path / "runs")).stdout)[
        "sources"
    ]

    assert (found["rows"], found["held_out"], found["overlap"]) == (50, 50, 40)


SETS = {"clm": "Text", "sft": "Demonstrations", "pref": "Preferences", "kto": "Ratings", "prompts": "Prompts"}
JUDGED = {"clm_movie_reviews", "reward_rotten_tomatoes"}
"""Text with labels."""


@pytest.mark.real
def test_real_sets_are_read_whole_without_being_told_their_columns() -> None:
    table = (NASTY.parent / "README.md").read_text("utf-8")
    stated = {name: int(rows) for name, rows in re.findall(r"\| `(\w+)\.jsonl\.gz` \| (\d+) \|", table)}

    for name, rows in stated.items():
        path = NASTY.parent / f"{name}.jsonl.gz"
        (found,) = json.loads(checked(str(path), "--json").stdout)["sources"]
        kind = "Ratings" if name in JUDGED else SETS.get(name.partition("_")[0], "Prompts")
        assert (name, found["kind"], found["rows"] + found["held_out"]) == (name, kind, rows)
        if kind == "Preferences":
            assert found["longer_wins"] == pytest.approx(longer_wins(path), abs=0.01)
    assert len(stated) == 22


def longer_wins(path: Path) -> float:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    more = [len(str(row["chosen"])) - len(str(row["rejected"])) for row in rows]
    return sum(0.5 if one == 0 else float(one > 0) for one in more) / len(more)


USER = {"role": "user", "content": "a?"}
CHAT = {"prompt": [USER], "completion": [{"role": "assistant", "content": "b"}]}
PLAIN = {"prompt": "a?", "completion": " b"}
MIXED = (
    "chats and plain text are mixed (27 chat, 13 plain); this is the first {} row; make two sources of them, or write "
    "all rows in one form"
)


@pytest.mark.parametrize("first", ["chat", "plain"])
def test_chats_among_plain_text_are_refused_with_both_counts(tmp_path: Path, first: str) -> None:
    chats = [{**CHAT, "prompt": [{**USER, "content": f"{n}"}]} for n in range(27)]
    plain = [{**PLAIN, "prompt": f"{n}?"} for n in range(13)]
    one, others = (chats, plain) if first == "chat" else (plain, chats)
    rows = [*one[:3], *others, *one[3:]]

    with pytest.raises(DataError) as refused:
        audited(tmp_path, Demonstrations, rows)

    other = "plain" if first == "chat" else "chat"
    assert str(refused.value).splitlines() == [
        f"{tmp_path}/rows.jsonl:4: {MIXED.format(other)}",
        f"source 'mine': {len(others)} of 40 rows are bad; sources.mine.on_bad_rows = \"skip\" leaves them out and "
        "counts them",
    ]


def test_chats_in_one_file_and_plain_text_in_another_are_refused(tmp_path: Path) -> None:
    one, other = put(tmp_path, [CHAT] * 2, "a.jsonl"), put(tmp_path, [PLAIN], "b.jsonl")

    with pytest.raises(DataError) as refused:
        audit(records(Demonstrations, one, other), RecordOptions())

    assert str(refused.value) == f"{other}:1: {MIXED.format('plain').replace('27', '2').replace('13', '1')}"


def test_held_out_rows_of_another_form_are_refused(tmp_path: Path) -> None:
    train, test = put(tmp_path, [CHAT] * 2, "train.jsonl"), put(tmp_path, [PLAIN], "test.jsonl")
    one, other = records(Demonstrations, train), records(Demonstrations, test)
    parts = (one.parts[0].model_copy(update={"side": "train"}), other.parts[0].model_copy(update={"side": "held_out"}))

    with pytest.raises(DataError) as refused:
        audit(one.model_copy(update={"parts": parts}), RecordOptions())

    assert str(refused.value) == (
        "source 'mine': the rows to learn from and the held-out ones are mixed chats and plain text (2 chat, 1 plain); "
        "write all rows in one form"
    )


def test_chats_among_plain_text_are_left_out_where_bad_rows_are(tmp_path: Path) -> None:
    rows = [*[{**PLAIN, "prompt": f"{n}"} for n in range(9)], CHAT]

    found = audited(tmp_path, Demonstrations, rows, on_bad_rows="skip", max_bad=0.2)

    assert (found.rows + found.held_out, found.bad) == (9, 1)


@pytest.mark.parametrize(
    "answered",
    [
        lambda n: {"prompt": f"{n}?", "completion": f" {n}###eos_token###"},
        lambda n: {"messages": [USER, {"role": "assistant", "content": f"{n}###eos_token###"}]},
        lambda n: {"prompt": f"{n}?", "chosen": f" {n}###eos_token###", "rejected": f" no {n}###eos_token###"},
    ],
)
def test_an_ending_that_all_answers_share_is_told(tmp_path: Path, answered: Any) -> None:
    kind = Preferences if "chosen" in answered(0) else Demonstrations

    found = audited(tmp_path, kind, [answered(n) for n in range(40)])

    times = 80 if kind is Preferences else 40
    assert f"{times} of {times} answers end with the same 15 characters, '###eos_token###'" in remarks(found)


@pytest.mark.parametrize("ending", [".", "!\n\n", ""])
def test_an_ending_that_answers_commonly_have_is_not_told(tmp_path: Path, ending: str) -> None:
    rows = [{"prompt": f"{n}?", "completion": f" {n}{ending}"} for n in range(40)]

    assert audited(tmp_path, Demonstrations, rows).ending == ""


def test_keys_of_turns_are_counted_and_what_nothing_reads_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answers = [{"role": "assistant", "content": "b", "weight": weight, "prefix": True} for weight in (0, 1)]
    rows = [{"messages": [USER, answers[0], {**USER, "name": "me"}, answers[1]], "id": n} for n in range(2)]

    found, shown = audited(tmp_path, Demonstrations, rows), checked("rows.jsonl").stdout

    assert found.turn_keys == {"weight": 4, "prefix": 4, "name": 2}
    assert "not read    the columns id; the keys prefix of turns, unless the chat template reads them" in shown
    assert "not learnt  2 answers of the weight 0" in shown


def test_columns_that_are_part_of_a_prompt_and_are_not_read_are_told(tmp_path: Path) -> None:
    rows = [{**PLAIN, "prompt": f"{n}", "documents": [], "system": "s", "tools": []} for n in range(3)]

    assert remarks(audited(tmp_path, Demonstrations, rows))[-1] == (
        "the columns documents, system, tools are not read, and may be part of what is asked"
    )


def test_rows_that_differ_in_their_tools_or_calls_are_no_twins(tmp_path: Path) -> None:
    tools = [[{"name": name}] for name in ("look", "move")]
    calls = [{"role": "assistant", "content": "", "tool_calls": [tool]} for (tool,) in tools]
    same_call = [{"messages": [USER, calls[0]], "tools": one} for one in tools]
    same_tools = [{"messages": [USER, call], "tools": tools[0]} for call in calls]

    assert audited(tmp_path, Demonstrations, same_call).duplicates == 0
    assert audited(tmp_path, Demonstrations, same_tools).duplicates == 0


def test_a_file_by_itself_is_told_what_to_do_without_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, [PAIR, {**PAIR, "chosen": ""}, {**PAIR, "chosen": ""}])

    result = checked("rows.jsonl")

    assert result.stderr.splitlines()[-1] == (
        "error: rows.jsonl: 2 of 3 rows are bad; --fix NEW.jsonl writes the others to a new file"
    )


def test_advice_on_the_columns_of_a_file_by_itself_names_no_source(tmp_path: Path) -> None:
    path = put(tmp_path, [{"question": "a?"}])
    found = source_of([path], path.name, "ratings")

    with pytest.raises(DataError) as refused:
        audit(found.artifact(), RecordOptions())  # type: ignore[arg-type]  # it is of records

    assert str(refused.value).endswith('say which column it is: sources.NAME.columns.prompt = "..."')
