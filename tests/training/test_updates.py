"""The loop of methods that learn from a policy's own answers, by itself."""

from dataclasses import replace

import pytest
import torch
from tiny_models import STOP, llama, llama_critic

from alignkit.contract.sampling_settings import Generation, SamplingSettings
from alignkit.errors import PluginError
from alignkit.training import losses
from alignkit.training.layouts import Models, sample
from alignkit.training.rollouts import Rollout, generator_for, learnt_mask
from alignkit.training.scoring import Scored
from alignkit.training.seen import see
from alignkit.training.updates import Loop, start

VOCABULARY = 12
PROMPTS = [[3], [4, 5, 6]]


class Settings(SamplingSettings):
    method = "mine"  # type: ignore[misc]


def settings(**given) -> Settings:
    return Settings(**{"updates": 3, "batch": 4, "minibatches": 1, "generation": Generation(max_new_tokens=5)} | given)


def models() -> Models:
    policy, reference = (llama(VOCABULARY) for _ in range(2))
    return Models(policy, reference.requires_grad_(False), None, frozenset([STOP]))


def loop(log=lambda *_: None, **given) -> Loop[Settings]:
    some, mine = models(), settings(**given)
    return Loop(some, start(some, mine), PROMPTS, scored, mine, 5, log)


def scored(rollout: Rollout) -> Scored:
    scores = torch.tensor([float(len(answer)) for answer in rollout.answers])
    return Scored(scores, {"length": scores})


def test_updates_are_counted_and_logged() -> None:
    log = []

    for update in loop(lambda done, metrics: log.append((done, metrics["mine"]))).updates():
        update.done({"mine": update.number})

    assert log == [(1, 0), (2, 1), (3, 2)]


def test_an_update_that_is_not_ended_is_refused() -> None:
    updates = loop().updates()
    next(updates)

    with pytest.raises(PluginError) as refusal:
        next(updates)

    assert str(refusal.value) == "an update was not ended; call update.done(metrics) before the next one"


def test_updates_go_on_where_they_stopped() -> None:
    whole, parts = loop(), loop()
    answers = []
    for update in whole.updates():
        answers.append(update.sample())
        update.done({})

    parts.state.done = 2
    (last,) = [update.sample() for update in parts.updates() if not update.done({})]

    assert last.rows == answers[2].rows
    assert last.version == 2


def test_a_rollout_holds_the_log_probabilities_that_its_tokens_were_drawn_with() -> None:
    some = models()

    rollout = sample(some, PROMPTS, [0, 1, 1], 6, generator_for(1))

    seen = see(some, rollout, scored(rollout), settings(), 0.1)
    assert [len(row) for row in rollout.logprobs] == [len(row) for row in rollout.answers]
    assert seen.metrics["val/sampler_kl"] < 1e-9
    off = replace(rollout, logprobs=[[value - 1 for value in row] for row in rollout.logprobs])
    assert see(some, off, scored(off), settings(), 0.1).metrics["val/sampler_kl"] == pytest.approx(0.5, abs=1e-4)


def test_what_a_tool_said_is_read_and_not_learnt_from() -> None:
    some = models()
    rollout = Rollout([0], [PROMPTS[0]], [[5, 6, 7, STOP]], [True], learnt=[[True, False, False, True]])

    seen = see(some, rollout, scored(rollout), settings(), 0.1)

    assert learnt_mask(rollout).tolist() == [[True, False, False, True]]
    assert (seen.logprobs[0] == 0).tolist() == [False, True, True, False]
    assert seen.metrics["length"] == 2


def test_a_critic_learns_beside_the_policy_where_there_is_one() -> None:
    some = replace(models(), critic=llama_critic(VOCABULARY))

    assert start(some, settings()).learners.keys() == {"policy", "critic"}
    assert start(some, settings(), 0.5).learners["critic"].peak == 0.5
    assert start(models(), settings()).learners.keys() == {"policy"}


def test_advantages_pass_over_tokens_that_are_not_learnt_from() -> None:
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 9.0, 1.0]])
    alone = losses.estimate_advantages(rewards[:, [0, 2]], values[:, [0, 2]], torch.ones(1, 2).bool(), 0.9, 0.8)

    among = losses.estimate_advantages(rewards, values, torch.tensor([[True, False, True]]), 0.9, 0.8)

    assert among.advantages[:, [0, 2]].tolist() == alone.advantages.tolist()
    assert among.advantages[0, 1] == 0
