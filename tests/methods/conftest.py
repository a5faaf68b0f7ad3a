"""What tests of methods share."""

import pytest
import torch

from alignkit import RewardModel
from alignkit.training.models import load_for_reward_training
from alignkit.training.saving import save_reward
from alignkit.training.weight_files import ScoreScale


@pytest.fixture
def reward_model(policy, tmp_path) -> RewardModel:
    torch.manual_seed(3)
    model, tokenizer = load_for_reward_training(policy)
    save_reward(model, tokenizer, tmp_path / "reward", ScoreScale(0.5, 2.0))
    return RewardModel(name="reward", fingerprint="0", path=tmp_path / "reward", weight=10.0)
