"""Maximum likelihood: a language model learns those tokens of its rows that are labelled.

The loss of a step is the mean over all its learnt tokens, whatever rows they stand in and whatever goes through the
model at once. Tokens behind the last learnt one are not read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alignkit.contract.row_settings import TrainingSettings
from alignkit.contract.stage import Stage
from alignkit.training.answers import Model, exact_groups, in_passes
from alignkit.training.encoding import NOT_LEARNT, LabelledTokens
from alignkit.training.output_layer import Chosen, chosen_tokens, head_of
from alignkit.training.packing import LAID_OUT, hidden_before_answers
from alignkit.training.rollouts import answer_logits
from alignkit.training.rows import Teaching, teach
from alignkit.training.ways import form_of


def train_language_model(
    model: Model, rows: Sequence[LabelledTokens], stage: Stage, settings: TrainingSettings
) -> None:
    """Train on the labelled tokens of rows, each of which has one behind its first token; dropout is on."""

    def loss(part: Sequence[LabelledTokens]) -> tuple[Tensor, dict[str, Tensor]]:
        sums = summed(model, part)
        return -sums.logprobs, {"entropy": sums.entropy, "token_accuracy": sums.likeliest}

    def passes(part: Sequence[LabelledTokens]) -> list[list[int]]:
        cut = [parted_labels(row) for row in part]
        return in_passes(model, [row.prompt for row in cut], [row.answer for row in cut])

    form_of(model)  # it is tried before dropout is on
    teaching = Teaching(loss, passes, weigh=learnt_tokens, tokens=lambda row: len(row.ids), dropout=True)
    teach(model, rows, teaching, settings, stage)


class PartedLabels(NamedTuple):
    """A row up to its last learnt token, cut before the first that is learnt."""

    prompt: list[int]
    """At least one token: the first has nothing before it that it could be learnt from."""
    answer: list[int]
    learnt: list[bool]
    """The answer's tokens that are learnt."""


def parted_labels(row: LabelledTokens) -> PartedLabels:
    """Cut a row into what is given and what is learnt."""
    learnt = [label != NOT_LEARNT for label in row.labels]
    start = learnt.index(True, 1)
    end = len(learnt) - learnt[::-1].index(True)
    return PartedLabels(row.ids[:start], row.ids[start:end], learnt[start:end])


def learnt_tokens(row: LabelledTokens) -> int:
    """Return how many tokens of a row are learnt."""
    return len(row.labels) - row.labels.count(NOT_LEARNT) - (row.labels[0] != NOT_LEARNT)


def summed(model: Model, rows: Sequence[LabelledTokens]) -> Chosen:
    """Compute, with gradient, the sums of what `chosen_tokens` says over the learnt tokens of each row (n,)."""
    cut = [parted_labels(row) for row in rows]
    groups = exact_groups(model, [row.prompt for row in cut], [row.answer for row in cut])
    parts = [torch.stack(_summed(model, [cut[row] for row in group])) for group in groups]
    order = torch.tensor([row for group in groups for row in group], device=parts[0].device)
    return Chosen(*torch.cat(parts, dim=1).index_select(1, order.argsort()))


def _summed(model: Model, rows: Sequence[PartedLabels]) -> Chosen:
    prompts, answers = [row.prompt for row in rows], [row.answer for row in rows]
    learnt = [one for row in rows for one in row.learnt]
    form = form_of(model)
    laid = LAID_OUT["padded" if form == "logits" else form](prompts, answers, model.device).only(learnt)
    if form == "logits":
        tables = _said_by(*answer_logits(model, prompts, answers))
        said = Chosen(*(table.flatten().index_select(0, laid.places) for table in tables))
    else:
        said = chosen_tokens(hidden_before_answers(model, laid), head_of(model), laid.targets)
    return Chosen(*(laid.as_table(values).sum(dim=1) for values in said))


def _said_by(logits: Tensor, targets: Tensor) -> Chosen:
    """Return what logits (n, t, v) say of targets (n, t), all (n, t)."""
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(-1, targets[..., None]).squeeze(-1)
    odds = logprobs.detach().exp()
    likeliest = chosen.detach() >= logprobs.detach().amax(dim=-1)
    return Chosen(chosen, torch.special.entr(odds).sum(dim=-1), likeliest.float())
