"""What must hold in every run of grpo and rloo, whatever they learn."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from tiny_models import STOP, llama, updated

from alignkit.contract.kinds import FunctionReward, Prompts
from alignkit.contract.sampling_settings import KL, Generation, GroupSettings
from alignkit.contract.settings import LoRA
from alignkit.errors import DataError, StageError
from alignkit.methods import grpo, rloo
from alignkit.testing import Left, RecordingStage
from alignkit.training.layouts import Around, Models, open_models
from alignkit.training.losses import adapt_kl_coef
from alignkit.training.models import load_policy
from alignkit.training.rollouts import Rollout
from alignkit.training.scoring import Scored

VOCABULARY = 8
PROMPTS = [[1], [2, 3], [4, 5, 6], [7, 1]]
METHODS = {"grpo": (grpo.grpo, grpo.train, grpo.GRPOSettings), "rloo": (rloo.rloo, rloo.train, rloo.RLOOSettings)}

both = pytest.mark.parametrize("name", METHODS)


def settings(name: str, **given) -> GroupSettings:
    plain = {
        "learning_rate": 1e-3,
        "updates": 2,
        "batch": 8,
        "answers": 4,
        "epochs": 2,
        "minibatches": 2,
        "generation": Generation(max_new_tokens=4, unfinished="subtract", penalty=0.5),
    }
    return METHODS[name][2](**(plain | given))


def pull(name: str, **given) -> KL:
    return (grpo.GroupKL if name == "grpo" else KL)(**given)


def models(rows: int | None = None) -> Models:
    policy, reference = (llama(VOCABULARY) for _ in range(2))
    return Models(policy, reference.requires_grad_(False), None, frozenset([STOP]), rows_at_once=rows)


def ones(rollout: Rollout) -> Scored:
    scores = torch.tensor([float(answer.count(1)) for answer in rollout.answers])
    return Scored(scores, {"ones": scores})


def run(name: str, some: Models, given: GroupSettings, score=ones) -> list[dict[str, float]]:
    return updated(METHODS[name][1], some, given, PROMPTS, score, 5)


def weights(model) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


@both
def test_every_drawn_prompt_is_answered_as_often_as_was_asked_and_prompts_come_in_turn(name) -> None:
    rows: list[list[int]] = []

    def spy(rollout: Rollout) -> Scored:
        rows.append(rollout.rows)
        return ones(rollout)

    run(name, models(), settings(name), spy)

    assert [update == sorted(update, key=update.index) for update in rows] == [True, True]
    assert [update.count(row) for update in rows for row in dict.fromkeys(update)] == [4] * 4
    assert {*rows[0], *rows[1]} == {0, 1, 2, 3}


@both
def test_before_anything_is_learnt_kl_is_0_and_the_ratio_1(name) -> None:
    (figures,) = run(name, models(), settings(name, updates=1, epochs=1, minibatches=1))

    assert figures["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert figures["val/ratio"] == pytest.approx(1, abs=1e-6)
    assert figures["policy/approxkl_avg"] == pytest.approx(0, abs=1e-10)
    assert figures["policy/clipfrac_avg"] == 0


@both
def test_every_minibatch_of_every_epoch_is_an_optimiser_step(name) -> None:
    log = run(name, models(), settings(name, updates=3, epochs=2, minibatches=4))

    assert [figures["steps"] for figures in log] == [8, 16, 24]


@both
def test_the_same_seed_gives_the_same_weights(name) -> None:
    one, other = models(), models()

    run(name, one, settings(name))
    run(name, other, settings(name))

    assert all(torch.equal(a, b) for a, b in zip(weights(one.policy), weights(other.policy), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(one.policy), weights(one.reference), strict=True))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("name", "given"),
    [("rloo", {}), *(("grpo", {"average": average}) for average in ("answer", "token", "fixed"))],
)
def test_how_many_rows_go_through_at_once_changes_nothing(name, given, rows) -> None:
    whole, cut = models(), models(rows)

    run(name, whole, settings(name, **given))
    run(name, cut, settings(name, **given))

    torch.testing.assert_close(weights(cut.policy), weights(whole.policy), atol=1e-4, rtol=0)


@both
def test_groups_whose_scores_are_all_equal_are_counted_and_teach_nothing(name) -> None:
    some = models()
    before = weights(some.policy)

    def equal(rollout: Rollout) -> Scored:
        return Scored(torch.ones(8), {"equal": torch.ones(8)})

    given = settings(name, kl=pull(name, coef=0), generation=Generation(unfinished="subtract", penalty=0))
    log = run(name, some, given, equal)

    assert log[0]["val/groups_without_signal"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, weights(some.policy), strict=True))


@both
def test_a_stronger_pull_leaves_the_policy_closer_to_its_start(name) -> None:
    far, near = (
        run(name, models(), settings(name, updates=12, learning_rate=1e-2, kl=pull(name, coef=coef)))
        for coef in (0.0, 2.0)
    )

    assert near[-1]["objective/kl_k2"] < far[-1]["objective/kl_k2"] / 2


@both
def test_the_kl_coefficient_follows_its_target(name) -> None:
    given = settings(name, updates=3, learning_rate=1e-2, kl=pull(name, coef=0.1, target=1e-6, horizon=100))

    log = run(name, models(), given)

    assert log[0]["kl_coef"] == pytest.approx(0.1)
    assert log[2]["kl_coef"] == adapt_kl_coef(log[1]["kl_coef"], log[1]["objective/kl"], 1e-6, 100, 8)


@both
def test_an_update_stops_moving_the_policy_once_it_is_far_from_the_samples(name) -> None:
    given = settings(name, updates=1, epochs=4, learning_rate=1e-2, kl=pull(name, stop=1e-4))

    assert run(name, models(), given)[0]["steps"] < 8


@both
def test_a_reference_that_is_another_model_is_refused(name) -> None:
    other = replace(models(), reference=llama(VOCABULARY, seed=9))

    with pytest.raises(StageError) as refusal:
        run(name, other, settings(name))

    assert refusal.value.problem.startswith("the policy is not at its reference before the first update (KL ")


@both
def test_without_a_pull_no_start_is_needed(name) -> None:
    alone = replace(models(), reference=None)

    log = run(name, alone, settings(name, kl=pull(name, coef=0)))

    assert "objective/kl" not in log[0]
    assert log[-1]["objective/scores"] >= 0


@both
def test_a_pull_without_a_start_is_refused(name) -> None:
    with pytest.raises(StageError) as refusal:
        run(name, replace(models(), reference=None), settings(name))

    assert str(refusal.value) == "a policy without adapters needs a model of its own as reference"


@both
def test_one_answer_a_prompt_is_refused(name) -> None:
    with pytest.raises(ValidationError) as refusal:
        settings(name, answers=1)

    assert str(refusal.value.errors()[0]["ctx"]["error"]) == (
        f"{name} judges an answer by the others to its prompt, so one answer a prompt teaches nothing; "
        "set answers to 2 or more"
    )


@both
def test_a_batch_that_breaks_a_group_is_refused(name) -> None:
    with pytest.raises(ValidationError) as refusal:
        settings(name, batch=8, answers=3)

    assert str(refusal.value.errors()[0]["ctx"]["error"]) == "batch 8 is no whole number of groups of 3 answers"


@pytest.fixture
def inputs(policy, reward_model, records):
    words = ["hello", "how", "are", "you", "what", "a", "lovely", "day", "today"]
    rows = [{"prompt": f"{a} {b}"} for a in words for b in words]
    return {"policy": policy, "rewards": (reward_model,), "prompts": records(Prompts, rows[32:], rows[:32])}


def whole(name: str, **given) -> GroupSettings:
    plain = {"generation": Generation(max_new_tokens=8, unfinished="subtract", penalty=0), "batch": 32}
    return settings(name, **(plain | given))


@both
def test_the_reward_of_held_out_answers_rises(name, inputs, stage) -> None:
    given = whole(name, learning_rate=1e-2, updates=40, epochs=1, batch=64, kl=pull(name, coef=0.01))

    made = METHODS[name][0](given, stage, **inputs)

    before, after, _ = stage.results["reward"]
    assert after > before + 2
    assert stage.results["kl"][0] == pytest.approx(0, abs=1e-6)
    assert (made.path / "config.json").exists()


@both
def test_a_lora_policy_is_its_own_reference(name, inputs, stage) -> None:
    made = METHODS[name][0](whole(name, learning_rate=1e-2, lora=LoRA(rank=2)), stage, **inputs)

    assert stage.results["kl"][0] == pytest.approx(0, abs=1e-6)
    assert stage.logs[-1][2]["objective/kl_k2"] > 1e-4
    assert (made.path / "adapter_config.json").exists()


@both
def test_upper_layers_alone_may_learn(name, inputs, stage) -> None:
    given = whole(name, learning_rate=1e-2, updates=40, epochs=1, batch=64, trained_layers=1, kl=pull(name, coef=0.001))

    METHODS[name][0](given, stage, **inputs)

    before, after, _ = stage.results["reward"]
    assert after > before + 0.4
    assert stage.results["kl"][0] == pytest.approx(0, abs=1e-6)


@both
def test_upper_layers_and_adapters_are_not_trained_at_once(name) -> None:
    with pytest.raises(ValidationError) as refusal:
        settings(name, trained_layers=1, lora=LoRA())

    told = "trained_layers trains upper layers and lora added matrices; choose one of them"
    assert str(refusal.value.errors()[0]["ctx"]["error"]) == told


@both
def test_a_function_is_reward_enough(name, inputs, stage) -> None:
    gold = FunctionReward(name="gold", fingerprint="0", path=inputs["policy"].path, function="reviews-gold")

    METHODS[name][0](whole(name), stage, **{**inputs, "rewards": (gold,)})

    assert "reward" in stage.results
    assert "scores/gold" in stage.logs[0][2]


@both
def test_without_a_pull_kl_is_not_measured(name, inputs, stage) -> None:
    METHODS[name][0](whole(name, kl=pull(name, coef=0)), stage, **inputs)

    assert stage.results.keys() == {"reward", "length", "eos_rate"}


def test_neither_critic_nor_start_is_opened_where_nothing_asks_for_them(policy) -> None:
    some, _ = open_models(policy, [], settings("grpo"), Around(start=False))

    assert (some.critic, some.reference) == (None, None)


def figures(stage: RecordingStage) -> list[dict[str, float]]:
    return [
        {key: value for key, value in row.items() if not key.startswith("tokens_per_second")}
        for _, _, row in stage.logs
    ]


@both
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_an_interrupted_stage_makes_the_same_policy(name, inputs, tmp_path, lora) -> None:
    given = whole(name, updates=3, batch=8, lora=lora, kl=pull(name, target=0.01, horizon=100))
    method = METHODS[name][0]
    one, parts = RecordingStage(tmp_path / "one"), RecordingStage(tmp_path / "parts")
    torch.manual_seed(1)
    method(given, one, **inputs)

    torch.manual_seed(1)
    parts.stop_at = 2
    with pytest.raises(Left):
        method(given, parts, **inputs)
    parts = parts.again()
    kept = {file.name for file in parts.latest().iterdir()}
    torch.manual_seed(1)
    method(given, parts, **inputs)

    file = "artifact/adapter_model.safetensors" if lora else "artifact/model.safetensors"
    assert kept == {"manifest.json", "policy.safetensors", "state.json"}
    assert (parts.root / file).read_bytes() == (one.root / file).read_bytes()
    assert (figures(parts), parts.results, parts.samples) == (figures(one), one.results, one.samples)


def other_policy(policy, folder):
    """Return a policy of the same tokenizer and other weights."""
    model, tokenizer = load_policy(policy)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return policy.model_copy(update={"path": folder, "fingerprint": "other", "name": "other"})


@both
def test_the_policy_itself_as_reference_changes_nothing(name, inputs, tmp_path) -> None:
    one, two = RecordingStage(tmp_path / "one"), RecordingStage(tmp_path / "two")

    METHODS[name][0](whole(name), one, **inputs)
    METHODS[name][0](whole(name), two, **inputs, reference=inputs["policy"])

    assert figures(one) == figures(two)


@both
@pytest.mark.parametrize("given", [{}, {"lora": LoRA(rank=2)}, {"trained_layers": 1}], ids=["full", "lora", "upper"])
def test_kl_is_measured_from_the_reference(name, inputs, stage, tmp_path, given) -> None:
    other = other_policy(inputs["policy"], tmp_path / "other")

    METHODS[name][0](whole(name, learning_rate=1e-9, updates=1, **given), stage, **inputs, reference=other)

    before, after, _ = stage.results["kl"]
    assert before == pytest.approx(after, rel=1e-3)
    assert before > 0.01
    assert stage.logs[0][2]["objective/kl_k2"] > 0.001


@both
def test_a_reference_of_other_tokens_is_refused(name, inputs, stage, tmp_path) -> None:
    other = other_policy(inputs["policy"], tmp_path / "other")
    _, tokenizer = load_policy(other)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(other.path)
    other = other.model_copy(update={"grow_embedding": True})

    with pytest.raises(DataError) as refusal:
        METHODS[name][0](whole(name), stage, **inputs, reference=other)

    assert str(refusal.value) == (
        f"the reference 'other' has other tokens than the policy {inputs['policy'].name!r}; "
        "name a policy of the same tokenizer under inputs.reference"
    )
