"""What a recipe may say to TRL's trainers, what they are refused, and that they learn what alignkit's methods learn."""

import shutil
from pathlib import Path

import pytest
from alignkit_dpo import dpo
from alignkit_trl.passing import BEFORE, equal_passes, known_options, order_of_rows
from alignkit_trl.trl_dpo import TRLDPOSettings, trl_dpo
from alignkit_trl.trl_grpo import TRLGRPOSettings, trl_grpo
from alignkit_trl.trl_kto import TRLKTOSettings
from alignkit_trl.trl_reward import TRLRewardSettings, trl_reward
from alignkit_trl.trl_sft import TRLSFTSettings, trl_sft
from pydantic import ValidationError
from transformers import AutoTokenizer

from alignkit import DataError, FunctionReward, Policy, Preferences, Prompts, RecipeError, StageError
from alignkit.methods.reward import reward
from alignkit.methods.sft import sft
from alignkit.testing import RecordingStage, run_method, same_weights, write_inputs

WHOLE = {
    "learning_rate": 1e-3,
    "batch": 40,
    "epochs": 2,
    "precision": "fp32",
    "optimisation": {"schedule": "constant", "warmup": 0.0},
}
"""All rows in each step, so that their order is nothing; the two schedules begin a step apart."""
CHATS = "{% for m in messages %}{{ ' ' + m.role + ':' + m.content }}{% endfor %} assistant:"


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text} for text in texts]


def refusal(kind, **given) -> str:
    with pytest.raises(ValidationError) as refused:
        kind(**given)
    (error,) = refused.value.errors()
    return error["msg"].removeprefix("Value error, ")


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        (TRLDPOSettings, {"ld_alph": 0.5}, "config.ld_alph is no option of TRL's DPOConfig; did you mean 'ld_alpha'?"),
        (TRLSFTSettings, {"ld_alpha": 0.5}, "config.ld_alpha is no option of TRL's SFTConfig"),
        (
            TRLSFTSettings,
            {"output_dir": "here"},
            "config.output_dir cannot be set: the stage keeps files and checkpoints itself",
        ),
        (
            TRLSFTSettings,
            {"per_device_train_batch_size": 8},
            "config.per_device_train_batch_size is what the setting batch says; set that",
        ),
        (
            TRLRewardSettings,
            {"center_rewards_coefficient": 0.1},
            "config.center_rewards_coefficient is what the setting centering says; set that",
        ),
        (TRLKTOSettings, {"loss_type": "kto"}, "config.loss_type is what the setting loss says; set that"),
        (TRLDPOSettings, {"sync_ref_model": True}, f"config.sync_ref_model cannot be set: {BEFORE}"),
        (TRLGRPOSettings, {"num_generations": 4}, "config.num_generations is what the setting answers says; set that"),
    ],
)
def test_a_name_that_is_unknown_or_said_otherwise_is_refused_with_the_reason(kind, config, words) -> None:
    assert refusal(kind, config=config) == words


@pytest.mark.parametrize("kind", [TRLSFTSettings, TRLRewardSettings, TRLDPOSettings, TRLKTOSettings, TRLGRPOSettings])
def test_what_settings_say_are_options_of_trl(kind) -> None:
    assert {*kind.says, *kind.fixed} - {*known_options(kind.trainer)} == set()


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (
            TRLDPOSettings,
            {"label_smoothing": 0.1},
            "TRL's sigmoid has no label_smoothing; take loss robust, or the method dpo",
        ),
        (
            TRLDPOSettings,
            {"loss": "ipo", "config": {"loss_type": ["sft"]}},
            "loss and config.loss_type say the same; set one of them",
        ),
        (
            TRLGRPOSettings,
            {"answers": 1},
            "trl-grpo judges an answer by the others to its prompt; set answers to 2 or more",
        ),
        (
            TRLGRPOSettings,
            {"kl": {"target": 6.0}},
            "TRL's trainer knows kl.coef alone; leave the rest of kl, or take the method grpo",
        ),
        (
            TRLGRPOSettings,
            {"average": "answer", "config": {"loss_type": "bnpo"}},
            "average and config.loss_type say the same; set one of them",
        ),
    ],
)
def test_a_setting_that_trl_would_not_honour_is_refused(kind, given, words) -> None:
    assert refusal(kind, **given) == words


def test_a_value_that_trl_refuses_is_told_as_its_own_words(alignkit_stage, tmp_path) -> None:
    inputs = write_inputs(trl_sft, tmp_path)

    with pytest.raises(RecipeError) as refused:
        run_method(trl_sft, WHOLE | {"config": {"optim": "adamm"}}, alignkit_stage, **inputs)

    assert refused.value.where == "config"
    assert refused.value.problem.startswith("TRL refuses it: adamm is not a valid OptimizerNames")


@pytest.mark.parametrize(("ours", "theirs"), [(sft, trl_sft), (reward, trl_reward), (dpo, trl_dpo)])
def test_two_steps_over_all_rows_are_those_of_alignkits_method(ours, theirs, tmp_path) -> None:
    inputs = write_inputs(ours, tmp_path)

    made, stages = [], []
    for method in (ours, theirs):
        stages.append(RecordingStage(tmp_path / method.name))
        made.append(run_method(method, WHOLE, stages[-1], **inputs))

    assert same_weights(*made, within=1e-4)
    assert stages[1].results.keys() == stages[0].results.keys()
    for name, numbers in stages[0].results.items():
        assert stages[1].results[name] == pytest.approx(numbers, abs=1e-3)


def with_chats(policy: Policy, folder: Path) -> Policy:
    """Return the policy with a template that closes no answer."""
    shutil.copytree(policy.path, folder / "chats")
    tokenizer = AutoTokenizer.from_pretrained(folder / "chats")
    tokenizer.chat_template = CHATS
    tokenizer.save_pretrained(folder / "chats")
    return policy.model_copy(update={"path": folder / "chats"})


def test_chats_reach_the_trainer_as_the_tokens_that_dpo_learns(
    tmp_path, alignkit_tiny_policy, alignkit_records
) -> None:
    rows = [
        {"prompt": user(f"how {n}"), "chosen": assistant("fine"), "rejected": assistant(f"bad {n}")} for n in range(40)
    ]
    inputs = {
        "policy": with_chats(alignkit_tiny_policy, tmp_path),
        "pairs": alignkit_records(Preferences, rows),
    }

    made = [run_method(method, WHOLE, RecordingStage(tmp_path / method.name), **inputs) for method in (dpo, trl_dpo)]

    assert same_weights(*made, within=1e-4)


SOFT = {"prompt": "a", "chosen": " b", "rejected": " c", "p_chosen": 0.8}
PARTED = {"prompt": user("a"), "chosen": assistant("b", "c"), "rejected": assistant("d", "e")}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (SOFT, "8 pairs have p_chosen, which TRL's trainer does not know"),
        (PARTED, "the sides of 8 pairs part before the last answer, and TRL's trainer would learn all since"),
    ],
)
def test_pairs_that_trl_would_learn_otherwise_are_refused(
    row, words, tmp_path, alignkit_tiny_policy, alignkit_stage, alignkit_records
) -> None:
    pairs = alignkit_records(Preferences, [row] * 8)

    with pytest.raises(DataError) as refused:
        run_method(trl_dpo, WHOLE, alignkit_stage, policy=with_chats(alignkit_tiny_policy, tmp_path), pairs=pairs)

    assert refused.value.problem == words


FIRST = {"learning_rate": 1e-2, "updates": 2, "batch": 32, "answers": 8, "minibatches": 1, "precision": "fp32"}


def without_pad(policy: Policy) -> Policy:
    """Return the policy, whose tokens alignkit must add one to."""
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(policy.path)
    return policy


@pytest.mark.parametrize(("lora", "padded"), [(None, True), (None, False), ({"rank": 4}, True)])
def test_a_policy_that_has_learnt_nothing_is_its_start(lora, padded, tmp_path, alignkit_stage) -> None:
    inputs = write_inputs(trl_grpo, tmp_path)
    settings = FIRST | {"learning_rate": 1e-12, "lora": lora, "generation": {"max_new_tokens": 4}}

    run_method(
        trl_grpo,
        settings,
        alignkit_stage,
        **inputs | {"policy": inputs["policy"] if padded else without_pad(inputs["policy"])},
    )

    assert [(step, of) for step, of, _ in alignkit_stage.logs] == [(1, 2), (2, 2)]
    assert [metrics["kl"] for _, _, metrics in alignkit_stage.logs] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert alignkit_stage.results["kl"][:2] == pytest.approx((0.0, 0.0), abs=1e-4)


PLUGIN = """
from collections.abc import Sequence
from alignkit import Answer, Settings, hookimpl, reward

@reward("fewer-vowels")
def fewer_vowels(answers: Sequence[Answer], settings: Settings) -> list[float]:
    \"\"\"Count vowels, the fewer the better.\"\"\"
    return [-float(sum(letter in "aeiou" for letter in one.text)) for one in answers]

@hookimpl
def alignkit_rewards():
    return [fewer_vowels]
"""


def test_the_reward_of_held_out_answers_rises(tmp_path, alignkit_tiny_policy, alignkit_records) -> None:
    (tmp_path / "vowels.py").write_text(PLUGIN, "utf-8")
    asked = [{"prompt": f"the {n}"} for n in range(40)], [{"prompt": f"a {n}"} for n in range(32)]
    vowels = FunctionReward(name="vowels", fingerprint="0", path=tmp_path, function="fewer-vowels")
    stage = RecordingStage(tmp_path / "stage", plugin_files=[tmp_path / "vowels.py"])
    uncut = {"max_new_tokens": 8, "unfinished": "subtract", "penalty": 0.0}
    settings = FIRST | {"updates": 24, "kl": {"coef": 0.0}, "generation": uncut}

    inputs = {"policy": alignkit_tiny_policy, "rewards": (vowels,), "prompts": alignkit_records(Prompts, *asked)}
    run_method(trl_grpo, settings, stage, **inputs)

    before, after, _ = stage.results["reward"]
    assert after > before + 1
    told = {"objective/scores", "objective/scores_std", "eos_rate", "length", "lr", "scores/vowels"}
    assert told <= stage.logs[0][2].keys()


def test_scores_that_are_all_the_same_end_the_stage(tmp_path, alignkit_stage) -> None:
    settings = FIRST | {"patience": 1, "generation": {"max_new_tokens": 1}}

    with pytest.raises(StageError) as failed:
        run_method(trl_grpo, settings, alignkit_stage, **write_inputs(trl_grpo, tmp_path))

    assert failed.value.problem.startswith("all answers of the update score the same (-1), so nothing is learnt")


@pytest.mark.parametrize(
    ("rows", "micro", "world", "size"),
    [(16, 4, 1, 4), (14, 4, 1, 2), (11, 4, 1, 4), (13, 4, 1, 1), (6, 8, 1, 8), (22, 2, 1, 2), (28, 4, 2, 2)],
)
def test_the_last_batch_falls_into_equal_passes(rows, micro, world, size) -> None:
    options = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 8 // micro}

    found = equal_passes(options, rows, world)

    assert found == {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}


def test_every_epoch_takes_every_row_in_an_order_of_its_own() -> None:
    order = order_of_rows(10, 2.5, 3)

    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert len(order) == 25
