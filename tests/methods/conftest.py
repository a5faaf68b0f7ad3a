"""What tests of methods share."""

import pytest
import torch

from alignkit import RewardModel
from alignkit.training.models import load_for_reward_training
from alignkit.training.saving import save_reward


@pytest.fixture
def reward_model(policy, tmp_path) -> RewardModel:
    torch.manual_seed(3)
    model, tokenizer = load_for_reward_training(policy)
    save_reward(model, tokenizer, tmp_path / "reward", mean=0.5, std=2.0)
    return RewardModel(name="reward", fingerprint="0", path=tmp_path / "reward", weight=10.0)
