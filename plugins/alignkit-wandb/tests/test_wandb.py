"""What wandb has written for `wandb sync` is what the run told."""

import json
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignkit import TrackedRun, Tracker
from alignkit.testing import FIGURES, track

pytest.importorskip("wandb")


BLOCK, FILE_HEADER, HEADER = 32768, 7, 7


def written(folder: Path, attempts: int) -> list[Any]:
    """Read the records of all attempts, once wandb's own process has written the last one of each."""
    from wandb.proto.wandb_internal_pb2 import Record

    until = time.monotonic() + 30
    while True:
        files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
        records = [Record.FromString(raw) for file in files for raw in pieces(file.read_bytes())]
        if sum(one.WhichOneof("record_type") == "exit" for one in records) == attempts or time.monotonic() > until:
            return records
        time.sleep(0.1)


def pieces(log: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log: each has a checksum, a length and a type, none of these across a block."""
    place, record = FILE_HEADER, b""
    while place + HEADER <= len(log):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        record += log[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_wandb_has_the_figures_settings_and_samples_of_a_run_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkit_wandb import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))

    def open_later(run: TrackedRun) -> Tracker:
        time.sleep(run.resumed)  # wandb names its folders by the second
        return wandb.open(run)

    run = track(replace(wandb, open=open_later), tmp_path)

    records = written(tmp_path, attempts=2)
    figures: dict[str, dict[int, float]] = defaultdict(dict)
    samples = []
    for record in (one for one in records if one.WhichOneof("record_type") == "history"):
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        samples += [item for item in record.history.item if item.nested_key[:1] == ["finetune/samples"]]
        for name, value in row.items():
            stage, _, metric = name.partition("/")
            if metric not in ("", "step", "samples"):
                assert row[f"{stage}/step"] not in figures[name]
                figures[name][row[f"{stage}/step"]] = value
    assert figures == FIGURES
    assert [one.value_json for one in samples if one.nested_key[1:] == ["nrows"]] == ["1"]
    assert {one.run.run_id for one in records if one.WhichOneof("record_type") == "run"} == {run.id}
    config = {item.key: item.value_json for one in records for item in one.run.config.update}
    assert json.loads(config["finetune/learning_rate"]) == 1e-5
    axes = {(one.metric.glob_name, one.metric.step_metric) for one in records if one.metric.glob_name}
    assert axes == {("finetune/*", "finetune/step"), ("align/*", "align/step")}
