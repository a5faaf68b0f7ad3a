"""PPO against TRL 1.12.0's PPOTrainer, the last there was, on fixed answers: every figure of the first updates.

Run with `ALIGNKIT_TRL_1_12=FOLDER pytest -m slow tests/methods/test_ppo_parity.py`, where FOLDER was made by
`pip install --no-deps --target FOLDER trl==1.12.0`. TRL runs in a process of its own, ours too.

Where TRL is known to differ, the case keeps out of the way: answers are as long as they may be (it puts the score of a
finished one behind its end), no answer ends and none pays for that, pad is not the end token (its masks are
`ids != pad`), there is one minibatch, gradients are never clipped (it cannot), the value loss has weight 1 (ours
has an optimiser of its own), and Adam's epsilon is ours. Whitening divides by n here and n - 1 there, with n = 768.

The first step of an update has ratio 1 and a policy loss of 0 on any side, and the first update a KL of 0; so there are
four epochs, whose mean losses are compared, and a second update, which starts from what the first has learnt. Left out
are the clip fractions, which jump when one token of 768 does, and the entropy, which TRL takes while learning.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TRL = Path(os.environ.get("ALIGNKIT_TRL_1_12", "no-such-folder"))
LENGTH = 48
TOLERANCE = 1e-4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (TRL / "trl-1.12.0.dist-info").is_dir(), reason="ALIGNKIT_TRL_1_12 names no folder with TRL 1.12.0"
    ),
]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Run two updates of both sides; give the figures of TRL's, then of ours."""
    sys.path.insert(0, str(BENCHMARKS))
    from job import Job, run_side
    from made_models import make_models, some_prompts
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("parity")
    made = make_models("5M", None, folder)
    tokenizer = AutoTokenizer.from_pretrained(made.policy)
    prompts = some_prompts([4 + row for row in range(16)], tokenizer, seed=1)
    answers = torch.randint(2, len(tokenizer), (16, LENGTH), generator=torch.Generator().manual_seed(1))
    job = Job(
        policy=str(made.policy),
        reward=str(made.reward),
        prompts=prompts,
        updates=2,
        batch=16,
        epochs=4,
        minibatches=1,
        max_new_tokens=LENGTH,
        learning_rate=1e-5,
        kl_coef=0.5,
        seed=1,
        ends=False,
        answers=answers.tolist(),
        ours={"optimisation": {"max_grad_norm": 1e9}},
        trl={"vf_coef": 1.0},
    )
    theirs = run_side("trl_side.py", job, folder, TRL)
    ours = run_side("our_side.py", job, folder)
    assert theirs.steps == ours.steps == [4, 8]
    return theirs.figures, ours.figures


@pytest.mark.parametrize("update", [0, 1])
@pytest.mark.parametrize(
    "name",
    [
        "objective/scores",
        "objective/kl",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "objective/entropy",
        "loss/policy_avg",
        "loss/value_avg",
        "policy/approxkl_avg",
        "val/ratio",
    ],
)
def test_the_figures_of_an_update_are_those_of_trl(figures, name: str, update: int) -> None:
    theirs, ours = figures

    assert ours[update][name] == pytest.approx(theirs[update][name], abs=TOLERANCE)


def test_the_second_update_has_something_to_compare(figures) -> None:
    theirs, _ = figures

    compared = ("objective/scores", "objective/kl", "loss/policy_avg", "loss/value_avg")
    assert min(abs(theirs[1][name]) for name in compared) > 10 * TOLERANCE
