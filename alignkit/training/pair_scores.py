"""Bradley and Terry's likelihood of pairs: a score learns which of two answers is preferred.

What the two sides of a pair begin with is read once, wherever the model may share it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.contract.row_settings import TrainingSettings
from alignkit.contract.stage import Stage
from alignkit.training.answers import Model, exact_groups, in_passes
from alignkit.training.encoding import TokenPair
from alignkit.training.losses import bradley_terry_loss
from alignkit.training.models import heads_of
from alignkit.training.packing import FILLER, LAID_OUT, Tokens, hidden_before_answers
from alignkit.training.pair_values import with_values
from alignkit.training.rollouts import Critic, generator_for
from alignkit.training.rows import Teaching, teach
from alignkit.training.ways import reads_packed

HEADS = "counts for each head"
"""The column of a pair's row that says so."""


def train_scores(
    model: Model, pairs: Sequence[TokenPair], stage: Stage, settings: TrainingSettings, centre: float = 0.0
) -> None:
    """Train scores on pairs; `centre` weighs the pull of their mean towards zero. Dropout is on.

    A model with several heads learns as `taught_heads` says: the loss of a pair is the mean over the heads that the
    pair teaches, each pair for each head as much as one of all pairs would count.
    """
    packed, heads = reads_packed(model), heads_of(model)
    pairs = with_values(pairs, HEADS, taught_heads(len(pairs), heads, stage.seed))

    def loss(part: Sequence[TokenPair]) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = scores_of(model, part, packed)  # (n, heads)
        shares = chosen.new_tensor([pair.row[HEADS] for pair in part])
        losses = (bradley_terry_loss(chosen, rejected, centre) * shares).sum(dim=1)
        chosen, rejected = chosen.mean(dim=1), rejected.mean(dim=1)
        accuracy = (chosen > rejected).float() + 0.5 * (chosen == rejected)
        figures = {"accuracy": accuracy, "margin": chosen - rejected, "mean_reward": (chosen + rejected) / 2}
        return losses, figures

    def passes(part: Sequence[TokenPair]) -> list[list[int]]:
        cut = [parted_pair(pair) for pair in part]
        together = [[*chosen, *rejected] for _, chosen, rejected in cut]
        return in_passes(model, [prompt for prompt, _, _ in cut], together, packed)

    def tokens(pair: TokenPair) -> int:
        return len(pair.chosen) + len(pair.rejected)

    teach(model, pairs, Teaching(loss, passes, tokens=tokens, dropout=True), settings, stage)


def taught_heads(pairs: int, heads: int, seed: int) -> list[list[float]]:
    """Return for each pair what its loss counts for each head; of one head, 1 for each pair.

    Each of several heads is taught by a half of the pairs, drawn anew for it by the seed, and never sees the other: one
    over the heads times the share that it sees, and 0. So of three heads one pair in eight teaches none, while it
    still counts among the pairs of its step and epoch.
    """
    if heads == 1:
        return [[1.0]] * pairs
    half = -(-pairs // 2)
    table = torch.zeros(pairs, heads, dtype=torch.float64)
    for head in range(heads):
        mine = torch.randperm(pairs, generator=generator_for(seed, "head", head))[:half]
        table[mine, head] = pairs / (half * heads)
    taught: list[list[float]] = table.tolist()
    return taught


def parted_pair(pair: TokenPair) -> tuple[Tokens, Tokens, Tokens]:
    """Return what both sides begin with, and the rest of each."""
    both = zip(pair.chosen, pair.rejected, strict=False)
    shared = next((place for place, (one, other) in enumerate(both) if one != other), min(map(len, pair[:2])))
    return pair.chosen[:shared], pair.chosen[shared:], pair.rejected[shared:]


def scores_of(model: Model, pairs: Sequence[TokenPair], packed: bool) -> Tensor:
    """Compute, with gradient, the scores of each head at the last tokens of both sides of pairs (2, n, heads), in
    fp32."""
    prompts: list[Tokens] = []
    answers: list[Tokens] = []
    for side in ("chosen", "rejected"):
        for pair in pairs:
            ids = getattr(pair, side)
            shared = max(1, len(parted_pair(pair)[0]))
            prompts.append(ids[:shared])
            answers.append([*ids[shared:], FILLER])  # what stands before it is the last token
    groups = exact_groups(model, prompts, answers)
    parts = [
        _scores(model, [prompts[row] for row in group], [answers[row] for row in group], packed) for group in groups
    ]
    order = torch.tensor([row for group in groups for row in group], device=parts[0].device)
    return torch.cat(parts).index_select(0, order.argsort()).view(2, len(pairs), -1)


def _scores(model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens], packed: bool) -> Tensor:
    rows = LAID_OUT["packed" if packed else "padded"](prompts, answers, model.device)
    last = [place == len(answer) - 1 for answer in answers for place in range(len(answer))]
    return Critic(model).heads_of_hidden(hidden_before_answers(model, rows.only(last)))
