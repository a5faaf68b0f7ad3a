"""The models that a method on sampled answers holds in memory, and the passes it makes with them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from torch import Generator, Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.contract.kinds import Policy, Reward, RewardModel
from alignkit.contract.settings import LoRA, Precision
from alignkit.errors import DataError, RecipeError, StageError
from alignkit.learn.models import arithmetic, load_critic, load_policy, stop_tokens
from alignkit.learn.rollouts import (
    Critic,
    Rollout,
    Tokens,
    answer_logprobs,
    answer_logprobs_and_entropy,
    answer_values,
    by_length,
    in_groups,
    rows_in_a_pass,
    sample_answers,
)


@dataclass(frozen=True)
class Models:
    """A policy in training and what stands around it, with how they are run."""

    policy: PreTrainedModel | PeftModel
    reference: PreTrainedModel | None
    """The starting policy; None: the policy with its adapters off, where it has some."""
    critic: Critic | None
    """None: the method has no use for one."""
    stop: frozenset[int]
    """Tokens that end an answer."""
    temperature: float = 1.0
    """Divides the logits wherever a probability is meant."""
    dtype: torch.dtype = torch.float32
    """The arithmetic of all passes."""
    rows: int | None = None
    """How many rows go through a model at once; None: as many as fit into memory."""

    @property
    def can_compare(self) -> bool:
        """Tell whether there is a starting policy to compare with."""
        return self.reference is not None or isinstance(self.policy, PeftModel)

    @property
    def same(self) -> float:
        """The approximate KL a token below which two passes have come from equal weights."""
        return 1e-7 if self.dtype == torch.float32 else 1e-2


def open_models(
    policy: Policy,
    rewards: Sequence[Reward],
    *,
    critic: Literal["auto", "reward", "policy"] | None,
    temperature: float,
    lora: LoRA | None,
    precision: Precision,
    compared: bool = True,
) -> tuple[Models, PreTrainedTokenizerBase]:
    """Open a policy to be trained, its frozen start where it is compared with it, and a critic unless that is None.

    With LoRA the start is the policy's own base: `load_policy` puts a fresh adapter on exactly the starting weights.
    """
    trained, tokenizer = load_policy(policy, lora=lora, precision=precision)
    own = compared and lora is None
    reference = load_policy(policy, precision=precision, trainable=False)[0] if own else None
    valued = critic and _open_critic(policy, rewards, critic, lora, precision, tokenizer.get_vocab())
    stop = stop_tokens(trained, tokenizer)
    return Models(trained, reference, valued, stop, temperature, arithmetic(precision)), tokenizer


def _open_critic(
    policy: Policy,
    rewards: Sequence[Reward],
    init: Literal["auto", "reward", "policy"],
    lora: LoRA | None,
    precision: Precision,
    vocabulary: dict[str, int],
) -> Critic:
    """Start from the first reward that is a decoder with one score and the policy's tokens, else from the policy."""
    ours = [reward for reward in rewards if isinstance(reward, RewardModel) and reward.label is None]
    for reward in ours if init != "policy" else ():
        try:
            model, tokenizer = load_critic(reward, lora=lora, precision=precision)
        except DataError:
            continue  # It scores whole texts only, as an encoder does.
        if tokenizer.get_vocab() == vocabulary:
            return Critic(model)
    if init == "reward":
        problem = "no reward of this stage is a model that reads the policy's tokens one by one"
        raise RecipeError(problem, "ppo.critic.init", 'set it to "auto" or "policy"')
    return Critic(load_critic(policy, lora=lora, precision=precision)[0])


def sample(models: Models, prompts: Sequence[Tokens], rows: list[int], longest: int, chance: Generator) -> Rollout:
    """Let the policy answer these rows of the prompts in at most `longest` tokens."""
    asked = [prompts[row] for row in rows]
    with _arithmetic(models):
        answers, finished = sample_answers(
            models.policy,
            asked,
            max_new_tokens=longest,
            stop=models.stop,
            generator=chance,
            temperature=models.temperature,
        )
    return Rollout(rows, asked, answers, finished)


def policy_logprobs(models: Models, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
    """Compute the policy's log-probabilities of answer tokens (n, t), with gradient."""
    with _arithmetic(models):
        return answer_logprobs(models.policy, prompts, answers, models.temperature)


def critic_values(models: Models, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
    """Compute the critic's values before answer tokens (n, t), with gradient."""
    with _arithmetic(models):
        return answer_values(critic_of(models), prompts, answers)


def reread(models: Models, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Compute the policy's log-probability and entropy at each token of what it answered, both (n, t)."""

    def compute(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
        return answer_logprobs_and_entropy(models.policy, prompts, answers, models.temperature)

    logprobs, entropy = _in_groups(models, compute, rollout).unbind(dim=-1)
    return logprobs, entropy


def reference_logprobs(models: Models, rollout: Rollout) -> Tensor:
    """Compute the starting policy's log-probabilities of the answers' tokens (n, t)."""

    def compute(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
        return answer_logprobs(models.reference or models.policy, prompts, answers, models.temperature)

    with adapters_off(models.policy) if models.reference is None else nullcontext():
        return _in_groups(models, compute, rollout)


def answer_kl(models: Models, rollout: Rollout) -> float:
    """Estimate the KL divergence from the policy to its start, in nats, averaged over the answers."""
    return float((reread(models, rollout)[0] - reference_logprobs(models, rollout)).sum(dim=1).mean())


def value_estimates(models: Models, rollout: Rollout) -> Tensor:
    """Compute the critic's values before the answers' tokens (n, t), without gradient."""

    def compute(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
        return answer_values(critic_of(models), prompts, answers)

    return _in_groups(models, compute, rollout)


def critic_of(models: Models) -> Critic:
    """Give the critic; raises StageError where none was opened."""
    if models.critic is None:
        raise StageError("values need a critic, and none was opened")
    return models.critic


def adapters_off(policy: PreTrainedModel | PeftModel) -> AbstractContextManager[object]:
    """Run the base for a while; raises StageError where there is no adapter to switch off."""
    if not isinstance(policy, PeftModel):
        raise StageError("a policy without adapters needs a model of its own as reference")
    context: AbstractContextManager[object] = policy.disable_adapter()
    return context


def passes(models: Models, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[list[int]]:
    """Group rows by length into what goes through a model at once."""
    return by_length(prompts, answers, rows_at_once(models, prompts, answers))


def rows_at_once(models: Models, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> int:
    """Tell how many of these rows go through a model at once."""
    return models.rows or rows_in_a_pass(models.policy, prompts, answers)


def check_start(models: Models, kl: float, tokens: float) -> None:
    """Refuse a policy that is not its own reference before anything was learnt, by the KL of an answer (k2)."""
    if kl > models.same * tokens:
        raise StageError(
            f"the policy is not at its reference before the first update (KL {kl:.3g} nats)",
            remedy="the base of a LoRA policy must hold the weights that training starts from",
        )


def check_first_step(models: Models, kl: float) -> None:
    """Refuse log-probabilities that change although the weights have not, by the approximate KL of a token."""
    if kl > models.same:
        raise StageError(
            f"the ratio of an update's first step is not 1 (approximate KL {kl:.3g} a token)",
            remedy='this model computes differently from pass to pass; try precision = "fp32"',
        )


def _arithmetic(models: Models) -> AbstractContextManager[object]:
    if models.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(models.policy.device.type, models.dtype)


def _in_groups(models: Models, compute: Callable[..., Tensor], rollout: Rollout) -> Tensor:
    rows = rows_at_once(models, rollout.prompts, rollout.answers)
    with _arithmetic(models):
        return in_groups(compute, rollout.prompts, rollout.answers, rows)
