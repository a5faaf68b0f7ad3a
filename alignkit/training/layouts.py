"""The models that a method on sampled answers holds in memory, and the passes it makes with them.

They are laid out in one of two ways. `separate`: a critic has a body of its own. `shared`: it is a head on the
policy's last hidden states, so one pass serves both. In the second way, and where there is no critic, the lower layers
may be frozen: what they make of an answer is computed once and serves policy, start and critic in all epochs.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.contract.kinds import Policy, Reward, RewardModel
from alignkit.contract.sampling_settings import SamplingSettings
from alignkit.errors import DataError, RecipeError, StageError
from alignkit.training import parallel, sharding
from alignkit.training.arithmetic import arithmetic
from alignkit.training.models import load_critic, load_policy, load_reference
from alignkit.training.output_layer import chosen_logprobs, chosen_tokens, head_of
from alignkit.training.packing import LAID_OUT, Pack, by_prompt, hidden_before_answers
from alignkit.training.rollouts import (
    Beside,
    Critic,
    Rollout,
    Tokens,
    answer_logprobs,
    answer_logprobs_and_entropy,
    answer_values,
    apart_beyond,
    by_length,
    in_groups,
    rows_in_a_pass,
    sample_answers,
)
from alignkit.training.room import tokens_in_a_pass
from alignkit.training.tokenizers import stop_tokens
from alignkit.training.trunk import Trunk
from alignkit.training.ways import Form, alone_beyond, form_of, reads_packed, rows_together

Layout = Literal["separate", "shared"]


class ValueHead(nn.Module):
    """A critic that reads the policy's own last hidden states."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, device=device)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    @property
    def width(self) -> int:
        return self.score.in_features

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the value of the text up to each hidden state (m, d), in fp32 (m,)."""
        values: Tensor = self.score(hidden.to(self.score.weight.dtype))
        return values.squeeze(-1).float()


@dataclass(frozen=True)
class Models:
    """A policy in training and what stands around it, with how they are run."""

    policy: PreTrainedModel | PeftModel
    reference: PreTrainedModel | None
    """The starting policy, or one that stands for it; None: the policy with its adapters off or its first upper layers,
    where it has either."""
    critic: Critic | ValueHead | None
    """None: the method has no use for one."""
    stop_tokens: frozenset[int]
    """Tokens that end an answer."""
    temperature: float = 1.0
    """Divides the logits wherever a probability is meant."""
    dtype: torch.dtype = torch.float32
    """The arithmetic of all passes."""
    rows_at_once: int | None = None
    """How many rows go through a model at once; None: as many as fit into memory."""
    form: Form = "logits"
    """How rows go through the models."""
    alone_beyond: int | None = None
    """Rows longer than this go alone."""
    trunk: Trunk | None = None
    """Where the policy is cut into frozen and trained layers."""
    apart: bool = False
    """The reference is another policy than the one that training starts from."""
    start_share: float = 0.0
    """The starting policy's exponent in what answers, policy^(1 - share) * start^share at every token: 0 is the policy
    and 1 its start."""

    @property
    def can_compare(self) -> bool:
        """Return whether there is a starting policy to compare with."""
        return self.reference is not None or self.trunk is not None or isinstance(self.policy, PeftModel)

    @property
    def tolerance(self) -> float:
        """The approximate KL a token below which two passes have come from equal weights."""
        return 1e-7 if self.dtype == torch.float32 else 1e-2


class Reading(NamedTuple):
    """What the models make of sampled answers, without gradient; tables are (n, t), zero behind an answer's end."""

    logprobs: Tensor
    entropy: Tensor
    reference: Tensor | None
    """Log-probabilities by the starting policy."""
    values: Tensor | None
    states: Sequence[Tensor] | None
    """What the frozen layers made of each row (tokens, d)."""


@dataclass(frozen=True)
class Around:
    """What stands around the policy that a method trains."""

    critic: Literal["auto", "reward", "policy"] | None = None
    """What a critic starts from; None: the method has no use for one."""
    layout: Layout = "separate"
    """Whether the critic has a body of its own."""
    trained_layers: int | None = None
    """How many of the policy's upper layers learn; None: all."""
    start: bool = True
    """The policy is compared with the one that it started as."""


def open_models(
    policy: Policy,
    rewards: Sequence[Reward],
    settings: SamplingSettings,
    around: Around,
    reference: Policy | None = None,
) -> tuple[Models, PreTrainedTokenizerBase]:
    """Open a policy to be trained, and what the method wants around it; a `reference` stands for its start.

    With LoRA the start is the policy's own base: `load_policy` puts a fresh adapter on exactly the starting weights.
    Raises DataError where the reference has other tokens.
    """
    lora, precision, trained_layers = settings.lora, settings.precision, around.trained_layers
    trained, tokenizer = load_policy(policy, lora=lora, precision=precision)
    form = form_of(trained)
    if form == "logits" and (around.layout == "shared" or trained_layers):
        raise no_shared_body(trained)
    trunk = None
    if trained_layers and not isinstance(trained, PeftModel):
        sharding.refuse("a policy whose lower layers are frozen", "trained_layers")
        trunk = Trunk.cut(trained, trained_layers, LAID_OUT[form])
    start = None
    if reference or (around.start and lora is None and trunk is None):
        start = load_reference(reference or policy, policy, tokenizer, precision)
        form = _both(form, start)
    valued: Critic | ValueHead | None = None
    if around.critic and around.layout == "separate":
        valued = _open_critic(policy, rewards, around.critic, settings, tokenizer.get_vocab())
        form = _both(form, valued.model)
    elif around.critic:
        valued = ValueHead(head_of(trained).width, trained.device)
    models = Models(
        trained,
        start,
        valued,
        stop_tokens(trained, tokenizer),
        settings.generation.temperature,
        arithmetic(precision),
        rows_at_once=None if form == "packed" else rows_together(trained),
        form=form,
        trunk=trunk,
        alone_beyond=alone_beyond(trained),
        apart=reference is not None,
    )
    return models, tokenizer


def beside_start(models: Models, start: PreTrainedModel) -> Models:
    """Return the models with a starting policy, which reads the same rows in the same form."""
    form = _both(models.form, start)
    rows = None if form == "packed" else rows_together(models.policy)
    return replace(models, reference=start, form=form, rows_at_once=rows)


def no_shared_body(model: PreTrainedModel | PeftModel) -> RecipeError:
    """Make the error of a model whose logits are made otherwise than by a linear layer."""
    problem = f"the logits of a {type(model).__name__} are not made by a linear layer, which a shared body needs"
    return RecipeError(problem, remedy="let all weights learn, and the critic have a body of its own")


def _both(form: Form, other: PreTrainedModel | PeftModel) -> Form:
    """Return the form in which another model reads the same rows, too; what is packed may as well be padded."""
    return "padded" if form == "packed" and not reads_packed(other) else form


def _open_critic(
    policy: Policy,
    rewards: Sequence[Reward],
    init: Literal["auto", "reward", "policy"],
    settings: SamplingSettings,
    vocabulary: dict[str, int],
) -> Critic:
    """Start from the first reward that is a decoder with one score and the policy's tokens, else from the policy."""
    ours = [reward for reward in rewards if isinstance(reward, RewardModel) and reward.label is None]
    for reward in ours if init != "policy" else ():
        try:
            model, tokenizer = load_critic(reward, lora=settings.lora, precision=settings.precision)
        except DataError:
            continue  # It scores whole texts only, as an encoder does.
        if tokenizer.get_vocab() == vocabulary:
            return Critic(model)
    if init == "reward":
        problem = "no reward of this stage is a model that reads the policy's tokens one by one"
        raise RecipeError(problem, "ppo.critic.init", 'set it to "auto" or "policy"')
    return Critic(load_critic(policy, lora=settings.lora, precision=settings.precision)[0])


def sample(models: Models, prompts: Sequence[Tokens], rows: list[int], longest: int, chance: Generator) -> Rollout:
    """Let the policy, or its start by its share, answer these rows of the prompts in at most `longest` tokens."""
    asked, share, start = [prompts[row] for row in rows], models.start_share, models.reference or models.policy
    with _arithmetic(models), _at_start(models) if share == 1 else nullcontext():
        drawn = sample_answers(
            start if share == 1 else models.policy,
            asked,
            max_new_tokens=longest,
            stop=models.stop_tokens,
            generator=chance,
            temperature=models.temperature,
            beside=Beside(start, share, partial(_at_start, models)) if 0 < share < 1 else None,
        )
    return Rollout(rows, asked, drawn.answers, drawn.finished, drawn.logprobs)


def policy_logprobs(
    models: Models, prompts: Sequence[Tokens], answers: Sequence[Tokens], states: Sequence[Tensor] | None = None
) -> Tensor:
    """Compute the policy's log-probabilities of answer tokens (n, t), with gradient."""
    with _arithmetic(models):
        if models.form == "logits":
            return answer_logprobs(models.policy, prompts, answers, models.temperature)
        rows = _laid_out(models, prompts, answers)
        return rows.as_table(_logprobs(models, rows, _hidden(models, rows, _together(rows, states))))


def critic_values(models: Models, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
    """Compute the values of a critic of its own before answer tokens (n, t), with gradient."""
    critic = critic_of(models)
    with _arithmetic(models):
        rows = _laid_out(models, prompts, answers)
        return rows.as_table(critic.of_hidden(hidden_before_answers(critic.model, rows)))


def logprobs_and_values(
    models: Models,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    states: Sequence[Tensor] | None,
    head_alone: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute log-probabilities and values by one pass of a shared body, both (n, t), with gradient.

    `head_alone` keeps the values' gradient out of the body.
    """
    rows = _laid_out(models, prompts, answers)
    with _arithmetic(models):
        hidden = _hidden(models, rows, _together(rows, states))
        values = value_head_of(models)(hidden.detach() if head_alone else hidden)
        return rows.as_table(_logprobs(models, rows, hidden)), rows.as_table(values)


def read(models: Models, rollout: Rollout) -> Reading:
    """Compute what an update needs of its answers before the weights change."""
    with torch.no_grad(), _arithmetic(models):
        reading = _read_by_logits(models, rollout) if models.form == "logits" else _read_by_hidden(models, rollout)
    for model in (models.policy, models.reference, models.critic):
        if model is not None:
            sharding.part_again(model)
    return reading


def _laid_out(models: Models, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Pack:
    """Lay rows out in the form that the models read; without a head that we know, below each other."""
    return LAID_OUT["padded" if models.form == "logits" else models.form](prompts, answers, models.policy.device)


def _read_by_hidden(models: Models, rollout: Rollout) -> Reading:
    mine = parallel.deal_weighted(passes(models, rollout.prompts, rollout.answers))
    tables: list[dict[str, Tensor]] = []
    states: list[Tensor] = [torch.empty(0)] * len(rollout.answers)
    for group, _ in mine:
        rows = _laid_out(models, [rollout.prompts[i] for i in group], [rollout.answers[i] for i in group])
        below = models.trunk.states(rows) if models.trunk else None
        tables.append({name: rows.as_table(values) for name, values in _read_rows(models, rows, below).items()})
        for row, state in zip(group, rows.apart(below) if below is not None else (), strict=False):
            states[row] = state
    rows_of_all, width = len(rollout.answers), max(map(len, rollout.answers))
    whole = {
        name: parallel.table_of_all(mine, [table[name] for table in tables], rows_of_all, width) for name in tables[0]
    }
    return Reading(
        whole["logprobs"],
        whole["entropy"],
        whole.get("reference"),
        whole.get("values"),
        states if models.trunk and parallel.world() == 1 else None,  # else some rows' lie in other processes
    )


def _read_rows(models: Models, rows: Pack, below: Tensor | None) -> dict[str, Tensor]:
    """Return what each model makes of the answer tokens of these rows (m,)."""
    hidden = _hidden(models, rows, below)
    chosen = chosen_tokens(hidden, head_of(models.policy), rows.targets, models.temperature)
    read = {"logprobs": chosen.logprobs, "entropy": chosen.entropy}
    if models.can_compare:
        start, theirs = head_of(models.reference or models.policy), _start_hidden(models, rows, below)
        read["reference"] = chosen_logprobs(theirs, start, rows.targets, models.temperature)
    if isinstance(models.critic, ValueHead):
        read["values"] = models.critic(hidden)
    elif models.critic:
        read["values"] = models.critic.of_hidden(hidden_before_answers(models.critic.model, rows))
    return read


def _read_by_logits(models: Models, rollout: Rollout) -> Reading:
    groups = passes(models, rollout.prompts, rollout.answers)

    def table(compute: Callable[[Sequence[Tokens], Sequence[Tokens]], Tensor]) -> Tensor:
        return in_groups(compute, rollout.prompts, rollout.answers, groups)

    def ours(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
        return answer_logprobs_and_entropy(models.policy, prompts, answers, models.temperature)

    def theirs(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
        with _at_start(models):
            return answer_logprobs(models.reference or models.policy, prompts, answers, models.temperature)

    def values(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
        return answer_values(critic_of(models), prompts, answers)

    logprobs, entropy = table(ours).unbind(dim=-1)
    reference = table(theirs) if models.can_compare else None
    return Reading(logprobs, entropy, reference, table(values) if models.critic else None, None)


def answer_kl(models: Models, rollout: Rollout) -> list[float]:
    """Estimate the KL divergence from the policy to its start by each answer, in nats."""
    reading = read(models, rollout)
    if reading.reference is None:
        raise StageError("a KL divergence needs a starting policy, and none was opened")
    by_answer: list[float] = (reading.logprobs - reading.reference).sum(dim=1).tolist()
    return by_answer


def _hidden(models: Models, rows: Pack, states: Tensor | None) -> Tensor:
    if models.trunk is None:
        return hidden_before_answers(models.policy, rows)
    return models.trunk.hidden(rows, models.trunk.states(rows) if states is None else states, models.trunk.upper)


def _start_hidden(models: Models, rows: Pack, states: Tensor | None) -> Tensor:
    if models.reference is None and models.trunk is not None and states is not None:
        return models.trunk.hidden(rows, states, models.trunk.start)
    with _at_start(models):
        return hidden_before_answers(models.reference or models.policy, rows)


def _logprobs(models: Models, rows: Pack, hidden: Tensor) -> Tensor:
    return chosen_logprobs(hidden, head_of(models.policy), rows.targets, models.temperature)


def _together(rows: Pack, states: Sequence[Tensor] | None) -> Tensor | None:
    return None if states is None else rows.together(states)


def _at_start(models: Models) -> AbstractContextManager[object]:
    return nullcontext() if models.reference is not None else adapters_off(models.policy)


def critic_of(models: Models) -> Critic:
    """Return the critic with a body of its own; raises StageError where none was opened."""
    if not isinstance(models.critic, Critic):
        raise StageError("values need a critic of their own, and none was opened")
    return models.critic


def value_head_of(models: Models) -> ValueHead:
    """Return the critic that is a head on the policy; raises StageError where none was opened."""
    if not isinstance(models.critic, ValueHead):
        raise StageError("values need a head on the policy, and none was opened")
    return models.critic


def adapters_off(policy: PreTrainedModel | PeftModel) -> AbstractContextManager[object]:
    """Run the base for a while; raises StageError where there is no adapter to switch off."""
    if not isinstance(policy, PeftModel):
        raise StageError("a policy without adapters needs a model of its own as reference")
    context: AbstractContextManager[object] = policy.disable_adapter()
    return context


def passes(models: Models, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[list[int]]:
    """Group rows into what goes through a model at once."""
    if models.form == "packed":
        groups = by_prompt(prompts, answers, tokens_in_a_pass(models.policy), models.rows_at_once)
    else:
        size = min(rows_at_once(models, prompts, answers), parallel.share(len(answers)))
        groups = by_length(prompts, answers, size)
    return apart_beyond(groups, prompts, answers, models.alone_beyond)


def rows_at_once(models: Models, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> int:
    """Return how many of these rows go through a model at once."""
    return models.rows_at_once or rows_in_a_pass(models.policy, prompts, answers)


def check_start(models: Models, kl: float, tokens: float) -> None:
    """Refuse a policy that is not its own reference before anything was learnt, by the KL of an answer (k2)."""
    if kl > models.tolerance * tokens:
        raise StageError(
            f"the policy is not at its reference before the first update (KL {kl:.3g} nats)",
            remedy="the base of a LoRA policy must hold the weights that training starts from",
        )


def check_first_step(models: Models, kl: float) -> None:
    """Refuse log-probabilities that change although the weights have not, by the approximate KL of a token."""
    if kl > models.tolerance:
        raise StageError(
            f"the ratio of an update's first step is not 1 (approximate KL {kl:.3g} a token)",
            remedy='this model computes differently from pass to pass; try precision = "fp32"',
        )


def _arithmetic(models: Models) -> AbstractContextManager[object]:
    if models.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(models.policy.device.type, models.dtype)
