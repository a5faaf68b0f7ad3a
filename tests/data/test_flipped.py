"""Wrong labels and ratings by their size: which rows of a source are read how."""

from pathlib import Path
from typing import Any

import pytest
from planning import make_desk, write_rows

from alignkit.contract.kinds import Preferences, Ratings
from alignkit.data.records import Part, read_side
from alignkit.errors import DataError

PAIRS = [{"prompt": f"{n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(400)]
RATED = [{"prompt": f"{n}?", "completion": "so", "rating": n % 5 + 1} for n in range(50)]


def read(tmp_path: Path, kind: type[Preferences | Ratings], rows: list[dict[str, Any]], **options: Any) -> list[Any]:
    part = Part(name="rows", paths=(write_rows(tmp_path / "rows.jsonl", rows),), **options)
    return list(read_side([part], kind.__name__, kind.columns, held_out=options.get("side") == "held_out"))


def flipped(rows: list[Any]) -> set[str]:
    return {row["prompt"] for row in rows if row["chosen"].startswith("bad")}


def test_a_share_of_the_pairs_has_its_answers_exchanged(tmp_path: Path) -> None:
    some, more = (read(tmp_path, Preferences, PAIRS, side="train", flip=share) for share in (0.2, 0.4))

    assert len(flipped(some)) / 400 == pytest.approx(0.2, abs=0.06)
    assert len(flipped(more)) / 400 == pytest.approx(0.4, abs=0.07)
    assert flipped(some) < flipped(more)
    assert {row["rejected"] for row in some if row["prompt"] in flipped(some)} <= {row["chosen"] for row in PAIRS}
    assert flipped(read(tmp_path, Preferences, PAIRS, side="train", flip=0.2)) == flipped(some)


def test_what_is_held_out_keeps_its_labels(tmp_path: Path) -> None:
    assert flipped(read(tmp_path, Preferences, PAIRS, side="held_out", flip=1.0)) == set()


def test_rows_are_taken_by_their_rating(tmp_path: Path) -> None:
    assert {row["rating"] for row in read(tmp_path, Ratings, RATED, side="train", rated=(4, 5))} == {4, 5}


def test_labels_have_no_rating_to_take_rows_by(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        read(tmp_path, Ratings, [{"prompt": "?", "completion": "so", "label": True}], side="train", rated=(4, 5))

    assert str(refused.value).endswith("sources.rows.rated needs ratings, and the row has a label; leave it out")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ('{ prompts = "prompts.jsonl", flip = 0.2 }',
         "r.toml:3: source 'odd': flip does not fit prompts; only preferences have two answers to exchange"),
        ('{ preferences = "pairs.jsonl", rated = [1, 2] }',
         "r.toml:3: source 'odd': rated does not fit preferences; only ratings have a rating"),
        ('{ preferences = "pairs.jsonl", flip = 2 }',
         "r.toml:3: source 'odd': flip: must be less than or equal to 1, and is 2"),
        ('{ ratings = "builtin:reviews", rated = [2, 1] }',
         "r.toml:3: source 'odd': rated: no rating is from 2 to 1; write the lower one first, and is [2, 1]"),
    ],
)  # fmt: skip
def test_options_that_do_nothing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, told: str
) -> None:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    recipe = f'\n[sources]\nodd = {source}\nbase = {{ policy = "model" }}\n[stage.x]\nmethod = "measure"\n'

    assert make_desk(tmp_path).problems(recipe) == [told]


def test_a_source_without_them_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    desk, recipe = make_desk(tmp_path), '[sources]\nodd = { preferences = "pairs.jsonl"FLIP }\n' + (
        'base = { policy = "model" }\n[stage.x]\nmethod = "measure"\n'
    )  # fmt: skip

    prints = [
        desk.plan(recipe.replace("FLIP", option)).sources["odd"].fingerprint
        for option in ("", ", flip = 0.0", ", flip = 0.1")
    ]

    assert prints[0] == prints[1] != prints[2]
