"""Folders of data sets: only the files of one split are read, and never a file that tells of the others."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from alignkit.cli import main
from alignkit.contract.kinds import Demonstrations
from alignkit.data.splits import splits_in
from alignkit.errors import DataError, RecipeError
from alignkit.plan.plan import Plan
from tests.data.test_records import in_csv, in_jsonl, in_parquet
from tests.planning import Desk, make_desk

RECIPE = """
[sources]
base = {{ policy = "model" }}

[sources.demos]
demonstrations = {address}
{options}

[stage.tune]
"""
CONFIGS = """---
license: mit
configs:
- config_name: first
  data_files:
  - {split: train, path: first/train-*}
  - {split: test_extra, path: [first/test.jsonl]}
- config_name: second
  data_dir: second
  data_files: "*.jsonl"
---
# A data set
"""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return make_desk(tmp_path)


def rows(word: str, count: int = 2) -> list[dict[str, str]]:
    return [{"prompt": f"{word} {n}?", "completion": f" {n}"} for n in range(count)]


def write(folder: Path, files: Mapping[str, Sequence[Mapping[str, Any]] | str]) -> None:
    writers = {".jsonl": in_jsonl, ".csv": in_csv, ".parquet": in_parquet}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else writers[path.suffix](content))


def planned(desk: Desk, address: str = '"set"', options: str = "") -> Plan:
    return desk.plan(RECIPE.format(address=address, options=options))


def refused(desk: Desk, options: str = "", address: str = '"set"') -> str:
    return str(desk.refusal(RECIPE.format(address=address, options=options)))


def words(plan: Plan, *, held_out: bool = False) -> set[str]:
    """Tell which files the rows are from."""
    found = plan.sources["demos"].artifact()
    assert isinstance(found, Demonstrations)
    rows = found.held_out() if held_out else found.train()
    return {row["prompt"].split()[0] for row in rows}


CLONE = {
    "data/train-00000-of-00002.parquet": rows("one"),
    "data/train-00001-of-00002.parquet": rows("two"),
    "data/test-00000-of-00001.parquet": rows("test"),
    "README.md": "---\nconfigs:\n- config_name: default\n---\n",
    "dataset_infos.json": '{"default": {"splits": {}}}',
}

TREES = [
    CLONE,
    {"train/a.jsonl": rows("one"), "train/b.jsonl": rows("two"), "test/a.jsonl": rows("test")},
    {"train_1.jsonl": rows("one"), "train-2.csv": rows("two"), "test.jsonl": rows("test"), "dev.jsonl": rows("dev")},
    {"my-training-part.jsonl": rows("one"), "TRAIN.csv": rows("two"), "valid.csv": rows("dev"),
     "eval.jsonl": rows("test")},
    {"a/train.jsonl": rows("one"), "b/train.jsonl": rows("two"), "a/test.jsonl": rows("test")},
    {"one.jsonl": rows("one"), "two.csv": rows("two"), "README.txt": "Read me.", "LICENSE.txt": "MIT",
     "state_of_things.md": "no rows"},
    {"trainset.jsonl": rows("one"), "train_data.csv": rows("two"), "testset.jsonl": rows("test")},
    {"training_data.jsonl": rows("one"), "train_2.jsonl": rows("two"), "holdout.jsonl": rows("test")},
    {"contest.jsonl": rows("one"), "trainer.jsonl": rows("two")},
    {"data/part-00000-of-00002.jsonl": rows("one"), "data/part-00001-of-00002.jsonl": rows("two")},
]  # fmt: skip


@pytest.mark.parametrize("tree", TREES)
def test_of_a_folder_the_split_train_is_read(desk: Desk, tree: dict[str, Any]) -> None:
    write(desk.folder / "set", tree)

    assert words(planned(desk, options="held_out = 0.0")) == {"one", "two"}


@pytest.mark.parametrize("tree", [tree for tree in TREES if any(row == rows("test") for row in tree.values())])
@pytest.mark.parametrize("said", ['split = "test"', 'split = "test[:1]"'])
def test_another_split_is_read_where_it_is_named(desk: Desk, tree: dict[str, Any], said: str) -> None:
    write(desk.folder / "set", tree)

    assert words(planned(desk, options=f"{said}\nheld_out = 0.0")) == {"test"}


def test_a_split_may_be_called_by_another_word_for_it(desk: Desk) -> None:
    write(desk.folder / "set", {"train.jsonl": rows("one"), "dev.jsonl": rows("dev")})

    for name in ("validation", "dev", "valid"):
        assert words(planned(desk, options=f'split = "{name}"\nheld_out = 0.0')) == {"dev"}


@pytest.mark.parametrize("said", ["test", "test[:1]"])
def test_a_split_of_a_folder_may_hold_the_rows_to_measure_on(desk: Desk, said: str) -> None:
    write(desk.folder / "set", CLONE)

    plan = planned(desk, options=f'held_out = "{said}"')

    assert (words(plan), words(plan, held_out=True)) == ({"one", "two"}, {"test"})


def test_a_slice_of_a_folder_is_taken_of_its_split(desk: Desk) -> None:
    write(desk.folder / "set", CLONE)

    assert words(planned(desk, options='split = "train[:2]"\nheld_out = 0.0')) == {"one"}


def test_a_pattern_names_what_it_names(desk: Desk) -> None:
    write(desk.folder / "set", CLONE)

    assert words(planned(desk, '"set/data/*"', "held_out = 0.0")) == {"one", "two", "test"}


def test_a_split_counts_in_what_a_source_is(desk: Desk) -> None:
    write(desk.folder / "set", CLONE)
    plain, test = planned(desk), planned(desk, options='split = "test"')
    write(desk.folder / "set", {"data/test-00000-of-00001.parquet": rows("other")})

    assert planned(desk).sources["demos"].fingerprint == plain.sources["demos"].fingerprint
    assert planned(desk, options='split = "test"').sources["demos"].fingerprint != test.sources["demos"].fingerprint


@pytest.mark.parametrize("address", ["set", "set/train-00000-of-00001.parquet", "set/*"])
def test_files_that_are_links_are_read_by_their_own_names(desk: Desk, address: str) -> None:
    write(desk.folder, {"blobs/0123.parquet": rows("one")})
    (desk.folder / "blobs" / "0123.parquet").rename(desk.folder / "blobs" / "0123")
    (desk.folder / "set").mkdir()
    (desk.folder / "set" / "train-00000-of-00001.parquet").symlink_to(Path("..") / "blobs" / "0123")

    assert words(planned(desk, f'"{address}"', "held_out = 0.0")) == {"one"}


# What `save_to_disk` wrote


def save(folder: Path, word: str) -> None:
    from datasets import Dataset

    Dataset.from_list(rows(word, 4)).save_to_disk(folder)


def test_what_save_to_disk_wrote_is_read(desk: Desk) -> None:
    save(desk.folder / "set", "one")
    (desk.folder / "set" / "cache-0123.arrow").write_bytes(b"left behind by a map")

    assert words(planned(desk, options="held_out = 0.0")) == {"one"}


def test_what_save_to_disk_wrote_of_several_splits_is_read_by_split(desk: Desk) -> None:
    from datasets import Dataset, DatasetDict

    splits = {name: Dataset.from_list(rows(word)) for name, word in (("train", "one"), ("test", "test"))}
    DatasetDict(splits).save_to_disk(desk.folder / "set")

    assert words(planned(desk, options="held_out = 0.0")) == {"one"}
    assert words(planned(desk, options='held_out = "test"'), held_out=True) == {"test"}


def test_a_folder_without_its_list_of_files_is_refused(desk: Desk) -> None:
    write(desk.folder / "set", {"state.json": "{}", "dataset_info.json": "{}"})

    assert refused(desk) == (
        "r.toml:6: source 'demos': save_to_disk wrote this folder, and its state.json names no files; write it again, "
        "or name its files"
    )


# Configs


SEVERAL = {
    "README.md": CONFIGS,
    "first/train-1.jsonl": rows("one"),
    "first/test.jsonl": rows("test"),
    "second/train.jsonl": rows("two"),
    "second/test.jsonl": rows("other"),
}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('config = "first"', {"one"}),
        ('config = "first"\nsplit = "test_extra"', {"test"}),
        ('config = "second"', {"two", "other"}),  # as its card says
    ],
)
def test_the_card_of_a_clone_says_which_files_are_of_which_split(desk: Desk, options: str, expected: set[str]) -> None:
    write(desk.folder / "set", SEVERAL)

    assert words(planned(desk, options=f"{options}\nheld_out = 0.0")) == expected


def test_the_config_that_is_the_default_is_read(desk: Desk) -> None:
    card = CONFIGS.replace("- config_name: second", "- config_name: second\n  default: true")
    write(desk.folder / "set", {**SEVERAL, "README.md": card})

    assert words(planned(desk, options="held_out = 0.0")) == {"two", "other"}


@pytest.mark.parametrize("readme", ["# Only for people", "---\n: [\n---\n", "---\nconfigs: all of them\n---\n"])
def test_a_card_that_says_nothing_of_files_is_no_matter(desk: Desk, readme: str) -> None:
    write(desk.folder / "set", {**CLONE, "README.md": readme})

    assert words(planned(desk, options="held_out = 0.0")) == {"one", "two"}


# Refusals


@pytest.mark.parametrize(
    ("tree", "options", "message"),
    [
        (
            {"data/train_sft-00000-of-00001.jsonl": rows("a"), "data/test_sft-00000-of-00001.jsonl": rows("b")},
            "",
            "r.toml:6: source 'demos': the folder has the splits test_sft, train_sft, and no train; "
            'write split = "train_sft"',
        ),
        (
            {"test.jsonl": rows("a")},
            "",
            "r.toml:6: source 'demos': the folder has the split test, and no train; write split = \"test\"",
        ),
        (
            CLONE,
            'split = "dev"',
            "r.toml:6: source 'demos': the folder has the splits test, train, and no dev; write split = \"test\"",
        ),
        (
            {"train.jsonl": rows("a"), "test.jsonl": rows("b"), "more.jsonl": rows("c")},
            "",
            "r.toml:6: source 'demos': the folder has files of the splits test, train, and more.jsonl beside them; "
            'name the files to read, or a pattern, such as "set/train.jsonl"',
        ),
        (
            {"train.jsonl": rows("a"), "stats.json": "{}"},
            "",
            "r.toml:6: source 'demos': the folder has files of the split train, and stats.json beside them; "
            'name the files to read, or a pattern, such as "set/train.jsonl"',
        ),
        (
            {"state.json": '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}'},
            "",
            "r.toml:6: source 'demos': the folder lacks data-00000-of-00001.arrow, which it names as a file of its "
            "rows; copy it again, with all files",
        ),
        (
            {
                "README.md": "---\nconfigs:\n- config_name: default\n  data_files: data/train-*\n---\n",
                "a.jsonl": rows("a"),
            },
            "",
            "r.toml:6: source 'demos': the folder has no files of the split train, which it names; copy it again, with "
            "all files",
        ),
        (
            {"a.jsonl": rows("a")},
            'split = "test"',
            "r.toml:6: source 'demos': the folder has no splits, and 'test' is asked for; leave it out, or write a "
            'slice such as split = "[:2000]"',
        ),
        (
            SEVERAL,
            "",
            "r.toml:6: source 'demos': the folder has the configs first, second; write config = \"first\", or another "
            "of them",
        ),
        (
            SEVERAL,
            'config = "third"',
            "r.toml:6: source 'demos': the folder has the configs first, second, and 'third' is asked for; "
            'write config = "first"',
        ),
        (
            CLONE,
            'config = "third"',
            "r.toml:6: source 'demos': the folder has the config default, and 'third' is asked for; "
            'write config = "default"',
        ),
        (
            {"state.json": '{"_data_files": []}'},
            'config = "third"',
            "r.toml:6: source 'demos': the folder has no configs, and 'third' is asked for; leave config out",
        ),
        (
            {"README.md": "---\nconfigs:\n- {config_name: a, data_files: /etc/*.jsonl}\n---\n", "a.jsonl": rows("a")},
            "",
            "r.toml:6: source 'demos': the head of README.md names files by '/etc/*.jsonl', which cannot be looked "
            "for; name the files",
        ),
    ],
)
def test_a_split_that_would_be_a_guess_is_refused_with_the_names(
    desk: Desk, tree: dict[str, Any], options: str, message: str
) -> None:
    write(desk.folder / "set", tree)

    assert refused(desk, options) == message


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ('split = "test"', "split does not fit the address 'set/a.jsonl'; of files write a slice, such as \"[:2000]\""),
        (
            'config = "first"',
            "config does not fit the address 'set/a.jsonl'; only data sets of the hub, and clones of them, have "
            "configurations",
        ),
    ],
)
def test_a_file_has_neither_splits_nor_configs(desk: Desk, option: str, remedy: str) -> None:
    write(desk.folder / "set", {"a.jsonl": rows("a")})

    refusal = desk.refusal(RECIPE.format(address='"set/a.jsonl"', options=option))

    assert (str(refusal), type(refusal)) == (f"r.toml:7: source 'demos': {remedy}", RecipeError)


# By themselves


def checked(folder: str) -> Any:
    return CliRunner().invoke(main, ["data", folder, "--json"])


def test_check_reads_the_split_train_of_a_folder_and_tells_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set", CLONE)

    (found,) = json.loads(checked("set").stdout)["sources"]

    assert (found["rows"] + found["held_out"], found["split"], found["splits"]) == (4, "train", ["test", "train"])


def test_check_names_a_file_of_a_folder_without_a_split_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set", {"dev.jsonl": rows("a"), "test.jsonl": rows("b")})

    result = checked("set")

    assert result.exit_code == DataError.status
    assert result.stderr == (
        "error: set: the folder has the splits validation, test, and no train; "
        "name the file, or a pattern in quotes: alignkit data set/dev.jsonl\n"
    )


@pytest.mark.parametrize(
    ("what", "problem"), [("set", "the folder holds no file of rows"), ("set/*", "no file matches the pattern")]
)
def test_check_says_where_there_are_no_files_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, problem: str
) -> None:
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(main, ["data", what, "--as", "demonstrations"])

    assert result.exit_code == 65
    assert result.stderr == (
        f"error: {what}: {problem}; name files that end in .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .txt, "
        "each also with .gz or .zst\n"
    )


def test_files_of_a_dictionary_of_splits_are_found_by_their_lists(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "dataset_dict.json": '{"splits": ["train"]}',
            "train/state.json": '{"_data_files": [{"filename": "b.arrow"}, {"filename": "a.arrow"}]}',
        },
    )

    assert splits_in(tmp_path) == {"train": [tmp_path / "train" / "b.arrow", tmp_path / "train" / "a.arrow"]}
