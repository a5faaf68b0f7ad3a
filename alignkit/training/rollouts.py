"""Answers of a policy: sampling them, and log-probabilities and values of their tokens.

Answers are lists of token ids of any length, the end token included where there is one. Whatever is padded for a
forward pass is known by its length alone: no token id ever means "padding", so a tokenizer whose padding token is its
end token, or which has none, is harmless.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignkit.training import parallel, sharding
from alignkit.training.arithmetic import rounded
from alignkit.training.decoding import Decoding, Mixture, Way, groups_to_decode, without_router_logits
from alignkit.training.packing import beneath, hidden_before_answers, last_hidden, padded
from alignkit.training.room import tokens_decoded
from alignkit.training.ways import alone_beyond, decoding_of, rows_together

Tokens = Sequence[int]
T = TypeVar("T")

LOGITS_IN_A_PASS = 2**26
"""Rows are passed in groups whose logits stay below this: 256 MB in single precision."""
TOKENS_IN_A_PASS = 2**14


@dataclass(frozen=True)
class Rollout:
    """What a policy answered."""

    rows: list[int]
    """Which of the caller's prompts was asked."""
    prompts: list[Tokens]
    answers: list[list[int]]
    """At least one token each."""
    finished: list[bool]
    """The answer ends with a stop token; otherwise it was cut at the length limit."""
    logprobs: list[list[float]] = field(default_factory=list)
    """Of each token of each answer, by whatever sampled it; empty where that does not tell."""
    learnt: list[list[bool]] = field(default_factory=list)
    """The tokens that the policy sampled, which are learnt from; others, such as what a tool said, are read alone.
    Empty: all."""
    version: int = 0
    """Updates that the policy had taken when it answered."""
    together: int = 0
    """So many neighbours are compared with each other; 0: all neighbours that answer the same prompt."""

    def with_rows(self, rows: Sequence[int], others: "Rollout") -> "Rollout":
        """Return it with others in place of these rows, in their order."""
        place = {row: number for number, row in enumerate(rows)}

        def both(ours: list[T], theirs: list[T]) -> list[T]:
            return [theirs[place[row]] if row in place else one for row, one in enumerate(ours)]

        return replace(
            self,
            rows=both(self.rows, others.rows),
            prompts=both(self.prompts, others.prompts),
            answers=both(self.answers, others.answers),
            finished=both(self.finished, others.finished),
            logprobs=both(self.logprobs, others.logprobs),
            learnt=both(self.learnt, others.learnt),
        )


class Sampled(NamedTuple):
    """Answers as they were drawn."""

    answers: list[list[int]]
    logprobs: list[list[float]]
    """Of each token, at the temperature that it was drawn at."""
    finished: list[bool]
    """The answer ends with a stop token."""


class Beside(NamedTuple):
    """A model that answers together with another one, by their geometric mixture."""

    model: PreTrainedModel | PeftModel
    share: float
    """The exponent of its probabilities; that of the other's is what is left to 1."""
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    """Where its passes are made, such as with its adapters off."""


def generator_for(seed: int, *place: int | str) -> torch.Generator:
    """Make a generator for one place of a run, so that the place alone says what is drawn there."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.no_grad()
def sample_answers(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    *,
    max_new_tokens: int,
    stop: frozenset[int],
    generator: torch.Generator,
    temperature: float = 1.0,
    beside: Beside | None = None,
) -> Sampled:
    """Draw one answer for each prompt from softmax(logits / temperature), nothing cut off and nothing else added.

    An answer ends with the first stop token, or after `max_new_tokens`. The draws depend on the generator (on the CPU)
    alone, not on how prompts are grouped. At the temperature 0 each token is the likeliest one. `beside` gives another
    model its share in every token.
    """
    draws = torch.rand(len(prompts), max_new_tokens, generator=generator)
    answers: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    mine = parallel.deal(range(len(prompts)))
    way, groups = _grouped(model, prompts, mine, max_new_tokens)

    def decode() -> None:
        for group in groups:
            decoding = _decoding(model, [prompts[i] for i in group], way, beside)
            found = _decode(decoding, draws[group], stop, temperature)
            for i, answer, drawn in zip(group, *found, strict=True):
                answers[i], logprobs[i] = answer, drawn

    with ExitStack() as gathered:
        for one in (model, beside.model) if beside and beside.model is not model else (model,):
            gathered.enter_context(sharding.whole(one))
        rounded(model, model.device, decode)
    answers = parallel.lists_of_all(answers, max_new_tokens, torch.int64)
    logprobs = parallel.lists_of_all(logprobs, max_new_tokens, torch.float64)
    return Sampled(answers, logprobs, [answer[-1] in stop for answer in answers])


@torch.no_grad()
def stream_answer(
    model: PreTrainedModel,
    prompt: Tokens,
    *,
    max_new_tokens: int,
    stop: frozenset[int],
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Iterator[int]:
    """Yield the tokens of the answer that `sample_answers` would give to this prompt alone, as they are drawn."""
    draws = torch.rand(1, max_new_tokens, generator=generator)
    way, _ = _grouped(model, [prompt], [0], max_new_tokens)
    for drawn in _drawn(Decoding(model, [prompt], way), draws, stop, temperature):
        yield drawn[0][1]


def _decoding(model: PreTrainedModel, prompts: Sequence[Tokens], way: Way, beside: Beside | None) -> Decoding | Mixture:
    if beside is None:
        return Decoding(model, prompts, way)
    other = Decoding(beside.model, prompts, way, beside.within)
    return Mixture(Decoding(model, prompts, way), other, beside.share)


def _grouped(
    model: PreTrainedModel, prompts: Sequence[Tokens], mine: Sequence[int], longest: int
) -> tuple[Way, list[list[int]]]:
    """Choose how answers of at most `longest` tokens are decoded, and which of this process's together."""
    whole = max(map(len, prompts)) + longest
    if (beyond := alone_beyond(model)) and whole > beyond:
        way = Way("none")  # what was kept of a row would have other frequencies than its longer self
        return way, _of_rows(mine, groups_to_decode([prompts[row] for row in mine], way, 1))
    way = decoding_of(model)
    together = rows_together(model) if way.cache == "none" else None
    size = together or max(1, tokens_decoded(model, TOKENS_IN_A_PASS) // whole)
    return way, _of_rows(mine, groups_to_decode([prompts[row] for row in mine], way, size))


def _of_rows(rows: Sequence[int], groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return groups of places in `rows` as groups of these rows."""
    return [[rows[place] for place in group] for group in groups]


def answer_mask(answers: Sequence[Tokens], device: torch.device | str = "cpu") -> Tensor:
    """Mark each answer's tokens in a right-padded table (n, t)."""
    lengths = torch.tensor([len(answer) for answer in answers], device=device)
    return torch.arange(max(map(len, answers)), device=device) < lengths[:, None]


def learnt_mask(rollout: Rollout, device: torch.device | str = "cpu") -> Tensor:
    """Mark the tokens of answers that the policy sampled, in a right-padded table (n, t)."""
    mask = answer_mask(rollout.answers, device)
    return padded_table(rollout.learnt, mask).bool() if rollout.learnt else mask


def padded_table(rows: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """Return rows of numbers as a right-padded table (n, t) as wide as the mask, in fp32."""
    width = mask.shape[1]
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], device=mask.device)


def answer_logprobs(
    model: PreTrainedModel, prompts: Sequence[Tokens], answers: Sequence[Tokens], temperature: float = 1.0
) -> Tensor:
    """Compute, by one teacher-forced pass, the log-probability of each answer token (n, t), in fp32.

    The distribution is the sampled one, softmax(logits / temperature). What stands behind an answer's end means
    nothing.
    """
    logits, targets = answer_logits(model, prompts, answers, temperature)
    return _chosen(logits, targets) - logits.logsumexp(dim=-1)


def answer_logprobs_and_entropy(
    model: PreTrainedModel, prompts: Sequence[Tokens], answers: Sequence[Tokens], temperature: float = 1.0
) -> Tensor:
    """Compute, beside each log-probability, the entropy of the distribution that it is from (n, t, 2)."""
    logits, targets = answer_logits(model, prompts, answers, temperature)
    normaliser = logits.logsumexp(dim=-1)
    logprobs = logits - normaliser[..., None]
    entropy = -torch.where(logprobs.isneginf(), 0.0, logprobs.exp() * logprobs).sum(dim=-1)
    return torch.stack([_chosen(logits, targets) - normaliser, entropy], dim=-1)


def answer_values(critic: "Critic", prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
    """Compute the critic's value of the text before each answer token (n, t), in fp32."""
    rows = padded(prompts, answers, critic.device)
    return rows.as_table(critic.of_hidden(hidden_before_answers(critic.model, rows)))


@torch.no_grad()
def in_groups(
    compute: Callable[[Sequence[Tokens], Sequence[Tokens]], Tensor],
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    groups: Sequence[Sequence[int]],
) -> Tensor:
    """Compute a table (n, t, ...) without gradient, a group of rows at a time; zero behind an answer's end."""
    mine = parallel.deal_weighted(groups)
    parts = [compute([prompts[i] for i in group], [answers[i] for i in group]) for group, _ in mine]
    table = parallel.table_of_all(mine, parts, len(answers), max(map(len, answers)))
    table[~answer_mask(answers, table.device)] = 0.0
    return table


def by_length(prompts: Sequence[Tokens], answers: Sequence[Tokens], size: int) -> list[list[int]]:
    """Put rows of similar length into groups of at most `size`, so that little is padded."""
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    return [order[start : start + size] for start in range(0, len(order), size)]


def apart_beyond(
    groups: Sequence[list[int]], prompts: Sequence[Tokens], answers: Sequence[Tokens], length: int | None
) -> list[list[int]]:
    """Let rows that are longer than this go alone; None: none of them need."""
    if length is None:
        return list(groups)
    longer = {row for group in groups for row in group if len(prompts[row]) + len(answers[row]) > length}
    short = [[row for row in group if row not in longer] for group in groups]
    return [*filter(None, short), *([row] for row in sorted(longer))]


def rows_in_a_pass(model: PreTrainedModel, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> int:
    """Return how many of these rows go through the model at once, by the memory that they need."""
    longest_answer = max(map(len, answers)) + 1
    longest = max(map(len, prompts)) + longest_answer
    vocabulary: int = model.config.get_text_config().vocab_size
    by_logits = LOGITS_IN_A_PASS // (longest_answer * vocabulary)
    return max(1, min(by_logits, TOKENS_IN_A_PASS // longest))


class Critic(nn.Module):
    """A decoder with a score head, read at every place instead of the last one only."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the value of the text up to each token (n, length), in fp32."""
        return self.of_hidden(last_hidden(self.model, input_ids=input_ids, use_cache=False))

    def of_hidden(self, hidden: Tensor) -> Tensor:
        """Return the value of each of its last hidden states (..., d), in fp32 (...)."""
        return self.heads_of_hidden(hidden).squeeze(-1)

    def heads_of_hidden(self, hidden: Tensor) -> Tensor:
        """Return what each head makes of each of its last hidden states (..., d), in fp32 (..., heads)."""
        values: Tensor = self._inner.score(hidden)
        return values.float()

    @property
    def _inner(self) -> Any:
        return beneath(self.model)


def answer_logits(
    model: PreTrainedModel, prompts: Sequence[Tokens], answers: Sequence[Tokens], temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute the logits that each answer token was drawn from (n, t, v), over the temperature, and the tokens."""
    rows = padded(prompts, answers, model.device)
    places = rows.as_table(rows.before)  # (n, t), in the flattened table
    with _reading_only(model, places):
        logits: Tensor = model(**rows.inputs, **without_router_logits(model)).logits
    if logits.shape[:2] != places.shape:
        logits = logits.flatten(0, 1)[places]
    return logits.float() / temperature, rows.as_table(rows.targets)


@contextmanager
def _reading_only(model: PreTrainedModel | PeftModel, places: Tensor) -> Iterator[None]:
    """Let a model make logits of these hidden states alone, by their places (n, t) in the flattened table.

    A table of logits for prompts and fillers, too, is what would fill the memory.
    """
    inner = beneath(model)
    head = inner.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, hidden: (hidden[0].flatten(0, 1)[places],))
    try:
        yield
    finally:
        handle.remove()


def _chosen(table: Tensor, tokens: Tensor) -> Tensor:
    return table.gather(-1, tokens[..., None]).squeeze(-1)


def _decode(
    decoding: Decoding | Mixture, draws: Tensor, stop: frozenset[int], temperature: float
) -> tuple[list[list[int]], list[list[float]]]:
    """Sample answers, with the log-probabilities of their tokens."""
    answers: list[list[int]] = [[] for _ in draws]
    logprobs: list[list[float]] = [[] for _ in draws]
    for drawn in _drawn(decoding, draws, stop, temperature):
        for row, token, logprob in drawn:
            answers[row].append(token)
            logprobs[row].append(logprob)
    return answers, logprobs


def _drawn(
    decoding: Decoding | Mixture, draws: Tensor, stop: frozenset[int], temperature: float
) -> Iterator[list[tuple[int, int, float]]]:
    """Yield of each place the rows that go on, each with its token and log-probability; they leave as they end."""
    open_rows = list(range(len(draws)))
    for place in range(draws.shape[1]):
        drawn, chances = draw(decoding.logits, temperature, draws[open_rows, place])  # (open,)
        tokens = drawn.tolist()
        yield list(zip(open_rows, tokens, chances.log().tolist(), strict=True))
        going_on = [i for i, token in enumerate(tokens) if token not in stop]
        if not going_on or place + 1 == draws.shape[1]:
            break
        open_rows = [open_rows[i] for i in going_on]
        decoding.step(drawn[going_on], going_on)


def draw(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a token for each row (n, v) by where its uniform number (n,) falls in the cumulative distribution.

    Second come the probabilities of the tokens (n,). At the temperature 0 it is the likeliest one, for certain.
    """
    if temperature == 0:
        return logits.argmax(dim=-1), torch.ones(len(logits), device=logits.device)
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    threshold = uniform.to(cumulative.device)[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, threshold, right=True).clamp(max=logits.shape[-1] - 1)  # (n, 1)
    return drawn.squeeze(-1), probabilities.gather(-1, drawn).squeeze(-1)
