"""What tests of planning share: a folder with small sources, methods that need no torch, and plans of recipe texts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import AlignkitError
from alignkit.plan.plan import Plan
from alignkit.plan.planner import make_plan

METHODS = '''
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from alignkit import (
    Demonstrations, LoRA, Policy, Preferences, Prompts, Reward, RewardModel, Scores, Settings, Stage, hookimpl, method,
)


class Pull(Settings):
    coef: PositiveFloat = 0.05
    estimator: Literal["k1", "k3"] = "k1"


class TuneSettings(Settings):
    rate: PositiveFloat = 1e-4
    batch: PositiveInt = 8
    label: str | None = None
    share: float | str = 0.5
    pull: Pull = Pull()
    lora: LoRA | None = None
    max_length: PositiveInt = 512


class LiftSettings(TuneSettings):
    updates: PositiveInt = 10


class SwapSettings(Settings):
    beta: PositiveFloat = 0.1


@method("tune")
def tune(settings: TuneSettings, stage: Stage, *, policy: Policy, demos: Demonstrations) -> Policy:
    """Imitate."""


@method("score")
def score(settings: SwapSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> RewardModel:
    """Learn a score."""


@method("lift")
def lift(
    settings: LiftSettings, stage: Stage, *, policy: Policy, rewards: tuple[Reward, ...], prompts: Prompts
) -> Policy:
    """Raise rewards."""


@method("swap")
def swap(settings: SwapSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Do without rewards."""


@method("measure")
def measure(
    settings: SwapSettings, stage: Stage, *, policies: tuple[Policy, ...], against: Policy | None = None
) -> Scores:
    """Compare."""


@method("blend")
def blend(settings: SwapSettings, stage: Stage, *, one: Policy, other: Policy) -> Policy:
    """Mix two policies."""


@hookimpl
def alignkit_methods():
    return [tune, score, lift, swap, measure, blend]
'''

CHAIN = """
[sources]
base = { policy = "model" }
demos = { demonstrations = "demos.jsonl" }
pairs = { preferences = "pairs.jsonl" }
prompts = { prompts = "prompts.jsonl" }

[stage.first]
method = "tune"
[stage.judged]
method = "score"
[stage.align]
method = "lift"
"""
"""A chain of three stages, as lines 2 to 13 of a recipe."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@dataclass(frozen=True)
class Desk:
    """A folder with sources and a plugin file, where recipes are planned."""

    folder: Path

    @property
    def plugin(self) -> Path:
        return self.folder / "fakes.py"

    def plan(self, text: str, sets: Mapping[str, Any] | None = None, **more: Any) -> Plan:
        path = self.folder / "r.toml"
        path.write_text(text, "utf-8")
        plugins = more.pop("plugins", [self.plugin])
        return make_plan(path, set=sets, runs=self.folder / "runs", plugins=plugins, **more)

    def refusal(self, text: str, sets: Mapping[str, Any] | None = None, **more: Any) -> AlignkitError:
        with pytest.raises(AlignkitError) as raised:
            self.plan(text, sets, **more)
        return raised.value

    def problems(self, text: str, sets: Mapping[str, Any] | None = None, **more: Any) -> list[str]:
        return str(self.refusal(text, sets, **more)).replace(str(self.folder), "FOLDER").splitlines()


def make_desk(folder: Path) -> Desk:
    write_model(folder / "model")
    write_rows(folder / "demos.jsonl", [{"prompt": "a?", "completion": "a."}])
    write_rows(folder / "pairs.jsonl", [{"prompt": "a?", "chosen": "a.", "rejected": "b."}])
    write_rows(folder / "prompts.jsonl", [{"prompt": "a?"}])
    (folder / "fakes.py").write_text(METHODS, "utf-8")
    return Desk(folder)
