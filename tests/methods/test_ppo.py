"""What must hold in every run of PPO, whatever it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from tiny_models import STOP, Layout, laid_out, llama, llama_critic, uniform_models, updated

from alignkit.contract.kinds import FunctionReward, Prompts
from alignkit.contract.settings import LoRA, Optimisation
from alignkit.errors import NotFiniteError, PluginError, RecipeError, StageError
from alignkit.methods.ppo import KL, CriticSettings, Generation, PPORewardShape, PPOSettings, ppo, train
from alignkit.testing import Left, RecordingStage
from alignkit.training.encoding import Prompt
from alignkit.training.layouts import Models
from alignkit.training.models import without_deprecations
from alignkit.training.rollouts import Critic, Rollout
from alignkit.training.scoring import Scored, Weighted, score_rollout
from alignkit.training.step import make_learner, scheduled, take_step

VOCABULARY = 8
PROMPTS = [[1], [2, 3], [4, 5, 6], [7, 1]]


def settings(**given) -> PPOSettings:
    plain = {
        "learning_rate": 1e-3,
        "updates": 2,
        "batch": 8,
        "epochs": 2,
        "minibatches": 2,
        "critic": CriticSettings(learning_rate=1e-3),
        "generation": Generation(max_new_tokens=4, unfinished="subtract", penalty=0.5),
    }
    return PPOSettings(**(plain | given))


def models(rows: int | None = None, seed: int = 0, layout: Layout | None = None) -> Models:
    """Make models that read padded rows, or packed ones in a layout."""
    policy, reference = (llama(VOCABULARY, seed) for _ in range(2))
    critic, stop = llama_critic(VOCABULARY, seed + 1), frozenset([STOP])
    padded = Models(policy, reference.requires_grad_(False), critic, stop, rows_at_once=rows)
    return laid_out(padded, layout) if layout else padded


def ones(rollout: Rollout) -> Scored:
    scores = torch.tensor([float(answer.count(1)) for answer in rollout.answers])
    return Scored(scores, {"ones": scores})


def run(some: Models, given: PPOSettings, seed: int = 5, score=ones) -> list[dict[str, float]]:
    return updated(train, some, given, PROMPTS, score, seed)


def weights(model) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def test_before_anything_is_learnt_kl_is_0_and_the_ratio_1() -> None:
    (figures,) = run(models(), settings(updates=1, epochs=1, minibatches=1))

    assert figures["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert figures["val/ratio"] == pytest.approx(1, abs=1e-6)
    assert figures["policy/approxkl_avg"] == pytest.approx(0, abs=1e-10)
    assert figures["policy/clipfrac_avg"] == 0


def test_every_minibatch_of_every_epoch_is_an_optimiser_step() -> None:
    log = run(models(), settings(updates=3, epochs=2, minibatches=4))

    assert [figures["steps"] for figures in log] == [8, 16, 24]


def test_a_learning_rate_of_0_leaves_the_weights_as_they_were() -> None:
    some = models()
    before = weights(some.policy)

    run(some, settings().model_copy(update={"learning_rate": 0.0}))

    assert all(torch.equal(a, b) for a, b in zip(before, weights(some.policy), strict=True))


def test_the_reference_stays_as_it_was_while_the_policy_moves() -> None:
    some = models()
    before = weights(some.reference)

    run(some, settings())

    assert all(torch.equal(a, b) for a, b in zip(before, weights(some.reference), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, weights(some.policy), strict=True))


def test_the_same_seed_gives_the_same_weights() -> None:
    one, other = models(), models()

    run(one, settings())
    run(other, settings())

    assert all(torch.equal(a, b) for a, b in zip(weights(one.policy), weights(other.policy), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(one.critic), weights(other.critic), strict=True))


@pytest.mark.parametrize("layout", [None, "separate", "shared"])
@pytest.mark.parametrize("rows", [1, 3])
def test_how_many_rows_go_through_at_once_changes_nothing(rows, layout) -> None:
    whole, cut = models(layout=layout), models(rows, layout=layout)

    run(whole, settings())
    run(cut, settings())

    torch.testing.assert_close(weights(cut.policy), weights(whole.policy), atol=1e-4, rtol=0)
    torch.testing.assert_close(weights(cut.critic), weights(whole.critic), atol=1e-4, rtol=0)


def test_a_reference_that_is_another_model_is_refused() -> None:
    some = models()
    other = Models(some.policy, llama(VOCABULARY, seed=9), some.critic, some.stop_tokens)

    with pytest.raises(StageError) as refusal:
        run(other, settings())

    assert refusal.value.problem.startswith("the policy is not at its reference before the first update (KL ")
    assert refusal.value.remedy == "the base of a LoRA policy must hold the weights that training starts from"


def test_a_model_that_computes_differently_from_pass_to_pass_is_refused() -> None:
    some = models()
    passes = iter(range(1000))

    def shift(module, given, output):
        output.logits[..., 2] += next(passes) * 0.1
        return output

    some.policy.register_forward_hook(shift)
    some.reference.register_forward_hook(lambda module, given, output: shift(module, given, output))
    same = Models(some.policy, some.policy, some.critic, some.stop_tokens)

    with pytest.raises(StageError):
        run(same, settings())


@pytest.mark.parametrize("layout", ["separate", "shared"])
def test_several_answers_to_a_prompt_stand_side_by_side_and_share_it(layout, monkeypatch) -> None:
    given, seen = settings(answers=4, batch=8, updates=1), []

    def spy(rollout: Rollout) -> Scored:
        seen.append(rollout.rows)
        return ones(rollout)

    together, alone = models(layout=layout), models(rows=1, layout=layout)
    run(together, given, score=spy)
    run(alone, given)

    assert [seen[0].count(row) for row in dict.fromkeys(seen[0])] == [4, 4]
    torch.testing.assert_close(weights(alone.policy), weights(together.policy), atol=1e-4, rtol=0)


def test_packed_rows_teach_what_padded_ones_teach() -> None:
    padded, packed = models(), models(layout="separate")

    figures = [run(some, settings())[-1] for some in (padded, packed)]

    torch.testing.assert_close(weights(packed.policy), weights(padded.policy), atol=1e-4, rtol=0)
    torch.testing.assert_close(weights(packed.critic), weights(padded.critic), atol=1e-4, rtol=0)
    told = [
        {name: value for name, value in each.items() if not name.startswith("tokens_per_second")} for each in figures
    ]
    assert told[1] == pytest.approx(told[0], abs=1e-3)


@pytest.mark.parametrize("layout", [None, "shared"])
def test_the_critic_alone_learns_while_it_warms_up(layout) -> None:
    some = models(layout=layout)
    policy, critic = weights(some.policy), weights(some.critic)

    log = run(some, settings(critic=CriticSettings(learning_rate=1e-3, warmup=2)))

    assert all(torch.equal(a, b) for a, b in zip(policy, weights(some.policy), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(critic, weights(some.critic), strict=True))
    assert "loss/policy_avg" not in log[0]


@pytest.mark.parametrize("layout", [None, "shared"])
def test_an_update_stops_moving_the_policy_once_it_is_far_from_the_samples(layout) -> None:
    log = run(models(layout=layout), settings(updates=1, epochs=4, minibatches=2, learning_rate=1e-2, kl=KL(stop=1e-4)))

    assert log[0]["steps"] < 8


def test_the_kl_coefficient_rises_when_kl_is_over_its_target() -> None:
    given = settings(updates=3, learning_rate=1e-2, kl=KL(coef=0.1, target=1e-6, horizon=100))

    log = run(models(), given)

    assert log[0]["kl_coef"] == pytest.approx(0.1)
    assert log[2]["kl_coef"] == pytest.approx(log[1]["kl_coef"] * (1 + 0.2 * 8 / 100))


def test_a_stronger_pull_leaves_the_policy_closer_to_its_start() -> None:
    free, held = models(), models()

    far = run(free, settings(updates=12, learning_rate=1e-2, kl=KL(coef=0.0)))
    near = run(held, settings(updates=12, learning_rate=1e-2, kl=KL(coef=1.0)))

    assert near[-1]["objective/kl"] < far[-1]["objective/kl"] / 2


def test_rewards_are_weighted_and_each_is_told() -> None:
    def score(rollout: Rollout) -> Scored:
        return Scored(torch.full((8,), 3.0), {"a": torch.full((8,), 1.0), "b": torch.full((8,), 2.0)})

    (figures,) = run(
        models(),
        settings(updates=1, generation=Generation(max_new_tokens=2, unfinished="subtract", penalty=0)),
        score=score,
    )

    assert (figures["scores/a"], figures["scores/b"], figures["objective/scores"]) == (1, 2, 3)


def test_a_lora_policy_is_its_own_reference() -> None:
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    with without_deprecations():
        policy = get_peft_model(llama(VOCABULARY), config).eval()
    frozen = [w for name, w in policy.named_parameters() if "lora_" not in name]
    base = [w.clone() for w in frozen]
    some = Models(policy, None, llama_critic(VOCABULARY), frozenset([STOP]))

    log = run(some, settings(updates=4, learning_rate=1e-2))

    assert log[0]["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert log[-1]["objective/kl_k2"] > 1e-4
    assert all(torch.equal(a, b) for a, b in zip(base, frozen, strict=True))


def test_a_full_policy_without_a_reference_is_refused() -> None:
    some = models()

    with pytest.raises(StageError) as refusal:
        run(Models(some.policy, None, some.critic, some.stop_tokens), settings())

    assert str(refusal.value) == "a policy without adapters needs a model of its own as reference"


def test_a_batch_that_cannot_be_cut_evenly_is_refused() -> None:
    with pytest.raises(ValidationError, match="batch 10 cannot be cut into 4 minibatches of one size"):
        PPOSettings(batch=10, minibatches=4)


def test_a_loss_that_is_not_finite_stops_before_the_weights_take_it() -> None:
    model = torch.nn.Linear(2, 1)
    before = weights(model)
    learner = make_learner(model, 0.1, Optimisation())

    with pytest.raises(NotFiniteError) as refusal:
        take_step(learner, [torch.tensor([[1.0, float("nan")]])], lambda batch: (model(batch).sum(), {}))

    assert refusal.value.problem == "optimiser step 1 has loss nan and gradient norm nan"
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]), ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1])],
)
def test_the_learning_rate_rises_then_follows_its_schedule(schedule, wanted) -> None:
    given = Optimisation(schedule=schedule, warmup=1 / 3)

    assert [scheduled(done, 6, given) for done in range(6)] == pytest.approx(wanted)


class Words:
    """A tokenizer of one letter a token."""

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join("_abcdefg"[token] for token in row if token != STOP) for row in rows]


def scored(*rewards: Weighted) -> Scored:
    rollout = Rollout([1, 0], [[1], [2]], [[1, 2, STOP], [3]], [True, False])
    prompts = [Prompt([2], "second", {"id": 2}), Prompt([1], "first", {"id": 1})]
    return score_rollout(rollout, prompts, Words(), rewards)


def test_a_reward_sees_prompt_text_end_and_row_of_each_answer() -> None:
    seen = []

    scored(Weighted("spy", lambda answers: [seen.append(a) or 0.0 for a in answers]))

    assert [(a.prompt, a.text, a.finished, a.row) for a in seen] == [
        ("first", "ab", True, {"id": 1}),
        ("second", "c", False, {"id": 2}),
    ]


def test_weighted_rewards_add_up() -> None:
    result = scored(Weighted("a", lambda answers: [1.0, 2.0], 2.0), Weighted("b", lambda answers: [3.0, 5.0], -1.0))

    assert result.total.tolist() == [-1, -1]
    assert result.parts["b"].tolist() == [3, 5]


def test_a_reward_that_gives_too_few_scores_is_refused() -> None:
    with pytest.raises(PluginError) as refusal:
        scored(Weighted("short", lambda answers: [1.0]))

    assert str(refusal.value) == (
        "reward 'short': the reward gave 1 numbers where 2 were asked for; it must return one number for each answer"
    )


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (None, "None instead of a list of numbers"),
        ("good", "'good' instead of a list of numbers"),
        (0.5, "0.5 instead of a list of numbers"),
        ([1.0, None], "None where a number was asked for"),
        ([1.0, "2"], "'2' where a number was asked for"),
        ([1.0, [2.0]], "[2.0] where a number was asked for"),
    ],
)
def test_a_reward_that_gives_something_else_is_named(given: object, what: str) -> None:
    with pytest.raises(PluginError) as refusal:
        scored(Weighted("odd", lambda answers: given))

    assert str(refusal.value) == f"reward 'odd': the reward gave {what}; it must return one number for each answer"


def test_numbers_of_numpy_and_torch_are_scores() -> None:
    result = scored(Weighted("a", lambda answers: np.array([1, 2])), Weighted("b", lambda answers: torch.ones(2)))

    assert result.total.tolist() == [2, 3]


def test_a_reward_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(NotFiniteError) as refusal:
        scored(Weighted("odd", lambda answers: [1.0, float("nan")]))

    assert str(refusal.value) == (
        "reward 'odd': 1 of 2 scores are not finite numbers; "
        "mend the reward; an answer that cannot be scored needs a low score, not a NaN"
    )


@pytest.fixture
def prompts(records) -> Prompts:
    words = ["hello", "how", "are", "you", "what", "a", "lovely", "day", "is", "it", "today"]
    rows = [{"prompt": f"{a} {b}"} for a in words for b in words]
    return records(Prompts, rows[16:], rows[:16])


def whole(**given) -> PPOSettings:
    return settings(generation=Generation(max_new_tokens=8, unfinished="subtract", penalty=0), batch=32, **given)


@pytest.mark.parametrize(
    "how",
    [
        {"lora": None},
        pytest.param({"lora": LoRA(rank=8)}, marks=pytest.mark.slow),
        {"lora": LoRA(rank=8), "layout": "shared"},
        pytest.param({"layout": "shared"}, marks=pytest.mark.slow),
        {"layout": "frozen", "trained_layers": 1},
    ],
    ids=["full", "lora", "lora, shared", "shared", "frozen"],
)
def test_the_reward_of_held_out_answers_rises(policy, reward_model, prompts, stage, how) -> None:
    given = whole(learning_rate=3e-2, updates=16, kl=KL(coef=0.01), critic=CriticSettings(learning_rate=1e-2), **how)

    made = ppo(given, stage, policy=policy, rewards=(reward_model,), prompts=prompts)

    before, after, _ = stage.results["reward"]
    assert after > before + 0.2
    assert stage.results["kl"][0] == pytest.approx(0, abs=1e-6)
    assert [step for step, _, _ in stage.logs] == list(range(1, 17))
    assert {"prompt", "before", "after", "reward before", "reward after"} == set(stage.samples[0])
    assert (made.path / ("adapter_config.json" if given.lora else "config.json")).exists()


def test_a_run_that_goes_wrong_is_warned_of_in_the_stage(policy, prompts, stage) -> None:
    reward = FunctionReward(name="gold", fingerprint="0", path=Path(), function="reviews-gold")
    given = whole(updates=9, learning_rate=0.3, epochs=4, kl=KL(coef=0), layout="shared", patience=0)

    ppo(given, stage, policy=policy, rewards=(reward,), prompts=prompts)

    assert any(remedy.startswith("raise kl.coef") for _, remedy in stage.warnings)


def test_a_stage_that_is_asked_to_stop_leaves_after_the_update(policy, reward_model, prompts, tmp_path) -> None:
    stage = RecordingStage(tmp_path / "stopped", stop_at=1)

    with pytest.raises(Left):
        ppo(whole(updates=3), stage, policy=policy, rewards=(reward_model,), prompts=prompts)

    assert len(stage.logs) == 1


def test_a_critic_from_the_reward_model_starts_with_normalised_scores(policy, reward_model) -> None:
    from alignkit.training.layouts import Around, open_models
    from alignkit.training.models import load_reward_model

    some, tokenizer = open_models(policy, [reward_model], settings(), Around(critic="auto"))

    ids = torch.tensor([tokenizer("hello how are you")["input_ids"]])
    raw, _, mean, std = load_reward_model(reward_model)
    value = some.critic(ids)[0, -1]
    assert (mean, std) == (0.5, 2.0)
    assert value.item() == pytest.approx((raw(input_ids=ids).logits.item() - mean) / std, abs=1e-5)


def test_a_critic_from_the_policy_starts_at_0(policy) -> None:
    from alignkit.training.layouts import Around, open_models

    gold = FunctionReward(name="gold", fingerprint="0", path=policy.path, function="reviews-gold")
    some, _ = open_models(policy, [gold], settings(lora=LoRA(rank=2)), Around(critic="auto"))

    ids = torch.tensor([[5, 6, 7]])
    assert not some.critic(ids).any()
    assert isinstance(some.critic, Critic)


def test_a_critic_from_a_reward_that_is_no_model_is_refused(policy, prompts, stage) -> None:
    gold = FunctionReward(name="gold", fingerprint="0", path=policy.path, function="reviews-gold")

    with pytest.raises(RecipeError) as refusal:
        ppo(whole(critic=CriticSettings(init="reward")), stage, policy=policy, rewards=(gold,), prompts=prompts)

    assert str(refusal.value) == (
        "ppo.critic.init: no reward of this stage is a model that reads the policy's tokens one by one; "
        'set it to "auto" or "policy"'
    )


def test_answers_without_prompts_aside_are_not_measured(policy, reward_model, records, stage) -> None:
    alone = records(Prompts, [{"prompt": "hello"}])

    ppo(whole(updates=1), stage, policy=policy, rewards=(reward_model,), prompts=alone)

    assert stage.warnings == [("no prompts are held out, so nothing is measured", "raise the source's held_out")]
    assert not stage.results


def test_the_uniform_policy_of_the_closed_forms_is_uniform() -> None:
    some = uniform_models(5, 0, frozenset())

    assert not some.policy(input_ids=torch.tensor([[1, 2]])).logits.any()


def test_dropout_is_refused_since_it_would_do_nothing() -> None:
    with pytest.raises(ValidationError) as refusal:
        PPOSettings(lora=LoRA(dropout=0.1))

    assert str(refusal.value.errors()[0]["ctx"]["error"]) == (
        "dropout 0.1 would do nothing: ppo compares probabilities from pass to pass, and so drops nothing; "
        "set this stage's lora.dropout to 0"
    )


def test_a_critic_without_a_clip_is_not_clipped() -> None:
    free, held = (CriticSettings(learning_rate=0.1, clip=clip) for clip in (0, 1e-3))

    assert run(models(), settings(critic=held))[-1]["val/clipfrac_avg"] > 0
    assert run(models(), settings(critic=free))[-1]["val/clipfrac_avg"] == 0


@pytest.mark.parametrize(("clip", "told"), [(0, 4), (0.5, 0.5)])
def test_scores_are_cut_unless_the_clip_is_0(clip, told) -> None:
    four = torch.full((8,), 4.0)
    given = settings(reward=PPORewardShape(clip=clip), generation=Generation(unfinished="subtract", penalty=0))

    log = run(models(), given, score=lambda rollout: Scored(four, {"four": four}))

    assert log[0]["objective/scores"] == told


def test_a_critic_from_the_reward_model_needs_a_body_of_its_own() -> None:
    with pytest.raises(ValidationError) as caught:
        PPOSettings(layout="shared", critic=CriticSettings(init="reward"))

    assert caught.value.errors()[0]["msg"] == (
        'Value error, critic.init = "reward" needs a critic with a body of its own; set layout = "separate", or leave '
        "it out"
    )


def test_frozen_layers_and_adapters_are_one_too_many() -> None:
    with pytest.raises(ValidationError) as caught:
        PPOSettings(layout="frozen", lora=LoRA())

    assert caught.value.errors()[0]["msg"] == (
        'Value error, layout = "frozen" trains upper layers and lora added matrices; choose one of them'
    )


def test_a_shared_body_is_refused_where_logits_are_made_otherwise(policy, prompts, stage, monkeypatch) -> None:
    monkeypatch.setattr("alignkit.training.layouts.form_of", lambda model: "logits")
    reward = FunctionReward(name="gold", fingerprint="0", path=Path(), function="reviews-gold")

    with pytest.raises(RecipeError) as caught:
        ppo(whole(layout="shared"), stage, policy=policy, rewards=(reward,), prompts=prompts)

    assert str(caught.value) == (
        "the logits of a LlamaForCausalLM are not made by a linear layer, which a shared body needs; let all weights "
        "learn, and the critic have a body of its own"
    )


@pytest.mark.parametrize("layout", ["separate", "frozen"])
def test_kl_is_measured_from_the_reference(layout, policy, reward_model, prompts, stage, tmp_path) -> None:
    first = ppo(whole(updates=2, learning_rate=1e-2), RecordingStage(tmp_path / "first"), policy=policy,
                rewards=(reward_model,), prompts=prompts)  # fmt: skip
    moved = policy.model_copy(update={"path": first.path, "fingerprint": "moved", "name": "moved"})
    given = whole(updates=1, learning_rate=1e-9, layout=layout, trained_layers=1)

    ppo(given, stage, policy=moved, rewards=(reward_model,), prompts=prompts, reference=policy)

    before, after, _ = stage.results["kl"]
    assert before == pytest.approx(after, abs=0.02)
    assert before > 0.05
