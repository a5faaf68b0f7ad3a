"""A run whose policies have learnt from plain text and from chats, whole and with adapters."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignkit.contract.kinds import Policy
from alignkit.plan.planner import make_plan
from alignkit.run.runner import run_plan
from alignkit.store.runs import KeptRun, open_run

RECIPE = """
name = "small"
seed = 3
result = ["plain", "chatty", "thin", "layered", "reward"]

[defaults]
max_length = 96

[sources]
base  = { policy = "hub/models--owner--tiny/snapshots/0123456789abcdef0123456789abcdef01234567" }
demos = { demonstrations = "demos.jsonl" }
chats = { demonstrations = "chats.jsonl" }
pairs = { preferences = "pairs.jsonl" }
gold  = { reward = "function:reviews-gold" }

[stage.plain]
method = "sft"
inputs = { policy = "base", demos = "demos" }
sft    = { epochs = 1, batch = 8, learning_rate = 1e-2, samples = 0 }

[stage.chatty]
method = "sft"
inputs = { policy = "base", demos = "chats" }
sft    = { epochs = 1, batch = 8, learning_rate = 1e-2, samples = 0 }

[stage.thin]
method = "sft"
inputs = { policy = "base", demos = "demos" }
lora   = { rank = 2 }
sft    = { epochs = 1, batch = 8, learning_rate = 1e-2, samples = 0 }

[stage.layered]
method = "sft"
inputs = { policy = "plain", demos = "demos" }
lora   = { rank = 2 }
sft    = { epochs = 1, batch = 8, learning_rate = 1e-2, samples = 0 }

[stage.reward]
method = "reward"
inputs = { policy = "base", pairs = "pairs" }
reward = { epochs = 1, batch = 8 }
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WORDS = ("food", "room", "staff", "day", "rain", "car", "bed", "tea", "door", "song", "lake", "film", "book", "shop")


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def small_run(tiny_policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> KeptRun:
    """Run the recipe once for all tests; they read it, and change nothing."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(tiny_policy.path, folder / "hub" / "models--owner--tiny" / "snapshots" / COMMIT)
    asked = [f"how was the {one} {other}" for one in WORDS for other in WORDS[:4]]
    write_rows(folder / "demos.jsonl", [{"prompt": one, "completion": " good and warm"} for one in asked])
    turns = [[{"role": "user", "content": one}, {"role": "assistant", "content": "good"}] for one in asked]
    write_rows(folder / "chats.jsonl", [{"messages": chat} for chat in turns])
    write_rows(folder / "pairs.jsonl", [{"prompt": one, "chosen": " good", "rejected": " bad day"} for one in asked])
    (folder / "small.toml").write_text(RECIPE)
    plan = make_plan(folder / "small.toml", runs=folder / "runs")
    return open_run(run_plan(plan, runs=folder / "runs", inline=True).folder)
