"""The frontier of a stage: what is attainable, the best of n, and every policy with those on the way to it."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit import Scores
from alignkit.show.frontier import frontier_of_stage
from alignkit.store import rundir
from alignkit.store.results import finish
from alignkit.store.runs import KeptStage

FINGERPRINT = "0" * 64
CEILING = {
    "measure": "gold", "samples": 64, "prompts": 128, "reward": 0.4, "reliable_kl": 2.159,
    "curve": [[0.0, 0.4], [1.0, 0.9], [2.1, 1.0]],
    "best_of": [
        {"by": "gold", "n": n, "reward": 0.5, "interval": 0.01, "most_kl": kl}
        for n, kl in ((2, 0.193), (4, 0.636), (32, 2.497))
    ],
}  # fmt: skip


def row(policy: str, **more: Any) -> dict[str, Any]:
    return {"policy": policy, "reward": 0.5, "reward_interval": 0.05, **more}


TABLE = [
    row("pretrain"),
    row("finetune", ceiling=CEILING),
    row("align@12", of="align", step=12, attained={"kl": 0.5}),
    row("align", attained={"kl": 1.5}),
]


def finished(runs: Path, table: list[dict[str, Any]]) -> KeptStage:
    """Write the folder of a finished stage that made such a table."""
    partial = rundir.partial_folder(runs, "scores", FINGERPRINT)
    made = Scores(name="scores", fingerprint=FINGERPRINT, path=partial / rundir.ARTIFACT)
    made.path.mkdir(parents=True)
    (made.path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in table))
    finish(partial, made, {"stage": "scores", "fingerprint": FINGERPRINT})
    return KeptStage("scores", {"wanted": True, "fingerprint": FINGERPRINT}, {}, runs)


def test_a_stage_draws_policies_under_what_is_attainable_with_those_on_the_way(tmp_path: Path) -> None:
    (picture,) = frontier_of_stage(finished(tmp_path, TABLE))

    assert picture.title == "gold against KL"
    assert list(picture.legend) == ["attainable", "best of n by gold", "finetune", "align"]
    assert picture.chart.count("<polyline") == 3  # the curve, the best of n, and the way of align
    assert picture.chart.count("<circle") == 2 + 1 + 2
    assert "told by 64 answers of the start to each of 128 prompts up to a KL of 2.2" in picture.told


def test_the_best_of_more_than_the_answers_tell_is_not_drawn(tmp_path: Path) -> None:
    (picture,) = frontier_of_stage(finished(tmp_path, TABLE))

    assert ">4</text>" in picture.chart
    assert ">32</text>" not in picture.chart


@pytest.mark.parametrize("table", [TABLE[:1], []])
def test_a_stage_without_a_ceiling_draws_none(tmp_path: Path, table: list[dict[str, Any]]) -> None:
    assert list(frontier_of_stage(finished(tmp_path, table))) == []


def test_a_table_that_is_damaged_is_not_drawn(tmp_path: Path) -> None:
    stage = finished(tmp_path, TABLE)
    (Path(stage.folder or "") / "artifact" / "data.jsonl").write_text("{")

    assert list(frontier_of_stage(stage)) == []
