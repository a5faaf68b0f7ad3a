"""Rewards and judges as a stage opens them, for tests that have no stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkit.contract.judges import JudgeClient
from alignkit.contract.kinds import Judge, Reward
from alignkit.contract.reward_function import Score
from alignkit.plugins import load_plugins
from alignkit.training import opening


def open_reward(reward: Reward, files: Sequence[Path] = (), **how: Any) -> Score:
    return opening.open_reward(reward, load_plugins(files), **how)


def open_judge(judge: Judge, files: Sequence[Path] = ()) -> JudgeClient:
    return opening.open_judge(judge, load_plugins(files))
