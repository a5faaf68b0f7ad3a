"""TRL's trainers as methods: what every method must keep."""

import shutil

import pytest
from alignkit_trl.passing import order_of_rows
from alignkit_trl.trl_dpo import trl_dpo
from alignkit_trl.trl_grpo import trl_grpo
from alignkit_trl.trl_kto import TRLKTOSettings, filled_up, trl_kto
from alignkit_trl.trl_reward import trl_reward
from alignkit_trl.trl_sft import trl_sft
from transformers import AutoTokenizer

from alignkit import Ratings, RecipeError
from alignkit.kit import load_policy, read_answers
from alignkit.testing import conformance, run_method

GIVEN_ROWS = {"learning_rate": 1e-2, "batch": 8, "precision": "fp32"}
JUDGED = GIVEN_ROWS | {"batch": 16, "kl_rows": 8}
ANSWERED = {
    "learning_rate": 1e-3,
    "updates": 3,
    "batch": 8,
    "answers": 4,
    "epochs": 2,
    "minibatches": 2,
    "precision": "fp32",
    "measured": 4,
    "generation": {"max_new_tokens": 5, "unfinished": "subtract", "penalty": 0.0},
}

TestTRLSFT = conformance(trl_sft, GIVEN_ROWS, effects=["lora.rank=4", "config.loss_type=dft"])
TestTRLReward = pytest.mark.slow(  # it is driven as trl-sft is
    conformance(trl_reward, GIVEN_ROWS, effects=["lora.rank=4", "centering=1.0", "config.adam_epsilon=1e-2"])
)
TestTRLDPO = conformance(trl_dpo, GIVEN_ROWS, effects=["lora.rank=4", "loss=hinge", "config.loss_type=['apo_zero']"])
TestTRLKTO = pytest.mark.slow(  # the tests of it below are quick
    conformance(trl_kto, JUDGED, effects=["beta=1.0", "config.adam_epsilon=1e-2"])
)


class TestTRLGRPO(  # type: ignore[misc]
    conformance(trl_grpo, ANSWERED, effects=["kl.coef=1.0", "scale=none", "answers=2", "lora.rank=4", "config.top_k=2"])
):
    @pytest.mark.slow
    def test_a_setting_has_an_effect(self, tmp_path, tmp_path_factory):
        super().test_a_setting_has_an_effect(tmp_path, tmp_path_factory)

    @pytest.mark.slow
    @pytest.mark.xfail(reason="each process of the trainer draws answers from a random state of its own", strict=True)
    def test_two_processes_make_what_one_makes(self, tmp_path, tmp_path_factory):
        super().test_two_processes_make_what_one_makes(tmp_path, tmp_path_factory)


def rows(number):
    return [
        {"prompt": f"the {n}", "completion": f" was {'good' if n % 3 else 'bad and cold'}", "label": bool(n % 3)}
        for n in range(number)
    ]


def test_trl_kto_parts_good_from_bad(alignkit_tiny_policy, alignkit_stage, alignkit_records):
    answers = alignkit_records(Ratings, rows(32), rows(12))

    run_method(trl_kto, JUDGED | {"epochs": 3}, alignkit_stage, policy=alignkit_tiny_policy, answers=answers)

    assert alignkit_stage.results["auc"][1] > 0.9


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what our libraries say to each other
def test_the_trainer_makes_the_same_tokens_of_chats_as_all_methods(
    alignkit_tiny_policy, alignkit_stage, alignkit_records, monkeypatch
):
    policy, seen = with_template(alignkit_tiny_policy, alignkit_stage.folder / "model", TURNS), []

    def watched(make, _, snapshots):
        data = make().train_dataset
        seen.extend(zip(data["prompt_ids"], data["completion_ids"], strict=True))

    monkeypatch.setattr("alignkit.kit.run_trainer", watched, raising=False)
    chats = [
        {
            "prompt": [{"role": "user", "content": f"how {n}"}],
            "completion": [{"role": "assistant", "content": "fine"}],
            "label": bool(n % 2),
        }
        for n in range(8)
    ]
    answers = alignkit_records(Ratings, chats)
    run_method(trl_kto, JUDGED | {"batch": 8}, alignkit_stage, policy=policy, answers=answers)

    model, tokenizer = load_policy(policy)
    ours = read_answers(answers, model, tokenizer, TRLKTOSettings(), alignkit_stage).train
    assert sorted(seen) == sorted((row.prompt, row.answer) for row in ours)
    assert tokenizer.decode(ours[0].answer) == "fine<eos>"


TURNS = (
    "{% for m in messages %}{{ ' ' + m.role + ':' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    " assistant:"
)
"""It asks for an answer whether it is told to or not."""


def with_template(policy, folder, template):
    shutil.copytree(policy.path, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return policy.model_copy(update={"path": folder})


def test_a_batch_that_groups_do_not_fill_is_refused(alignkit_tiny_policy, alignkit_stage, alignkit_records):
    with pytest.raises(RecipeError) as refused:
        run_method(
            trl_kto,
            JUDGED | {"batch": 12},
            alignkit_stage,
            policy=alignkit_tiny_policy,
            answers=alignkit_records(Ratings, rows(32)),
        )

    assert refused.value.remedy == "set it to a multiple of 8"


def test_every_row_is_learnt_and_the_last_group_is_filled_up():
    order = filled_up(order_of_rows(13, 2, 1), 4)

    assert len(order) == 28
    assert sorted(order[:13]) == sorted(order[13:26]) == list(range(13))
    assert order[:13] != order[13:26]
