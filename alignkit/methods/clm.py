"""CLM: go on with pretraining on raw text, so that a model knows a domain before it is taught to answer.

Maximises the likelihood of each next token. Documents are closed by the end-of-sequence token, laid end to end and
cut into blocks of one length: no text is lost, none is padded, and a block may see the end of the document before.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from alignkit.contract.advice import Advice
from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Policy, Text
from alignkit.contract.method import Method, method
from alignkit.contract.needs import packed_needs
from alignkit.contract.paper import Paper
from alignkit.contract.row_settings import TrainingSettings
from alignkit.contract.settings import SnapshotSettings
from alignkit.contract.stage import Stage
from alignkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignkit.training.encoding import Encoding, LabelledRow


class CLMSettings(SnapshotSettings, TrainingSettings):
    """Settings of `clm`; its rows are blocks of text."""

    max_length: PositiveInt | None = None
    """Tokens in a block. Unset: what the model reads at once, at most 1024."""
    measured: PositiveInt = 200
    """Held-out documents, at most, on which perplexity is measured."""


PAPERS = (
    Paper(
        "dapt",
        "Don't Stop Pretraining: Adapt Language Models to Domains and Tasks",
        "arXiv 2004.10964",
        differs="the next token is learnt; there it is a masked one",
    ),
)


@method(
    "clm",
    advice=Advice(
        "there is raw text of a domain whose words are new to the model",
        "the model forgets how to answer; teach it again afterwards, with sft",
    ),
    needs=packed_needs,
    results=("perplexity", "perplexity/{corpus}"),
    papers=PAPERS,
)
def clm(settings: CLMSettings, stage: Stage, *, policy: Policy, corpus: Text) -> Policy:
    """Pretrain a policy further on raw text."""
    from alignkit.training.configs import positions
    from alignkit.training.encoded import encode_once
    from alignkit.training.encoding import collected, fitting_length
    from alignkit.training.likelihood import train_language_model
    from alignkit.training.measures import perplexity, tell_perplexity
    from alignkit.training.mixed_rows import flat, held_out_rows
    from alignkit.training.models import load_policy

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    size = fitting_length(positions(model), settings.max_length)
    train, _ = encode_once(stage, corpus, tokenizer, lambda some: blocks(some.train(), tokenizer, size), size)
    aside = held_out_rows(corpus, settings.measured).items()
    held_out, sources = flat({name: collected(blocks(rows, tokenizer, size))[0] for name, rows in aside})
    if not train:
        raise DataError("there is no text to learn from", remedy="check the source and its held_out")

    measured = [block.tokens for block in held_out]
    before = perplexity(model, measured, tokenizer, settings.precision) if measured else None
    train_language_model(model, train, stage, settings)
    made = stage.save_policy(model, tokenizer)
    if measured:
        tell_perplexity(stage, before, perplexity(model, measured, tokenizer, settings.precision), sources)
    else:
        stage.warn("no text is held out, so perplexity is not measured", "raise the source's held_out")
    return made


def blocks(
    rows: Iterable[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase", size: int
) -> "Encoding[LabelledRow]":
    """Pack documents into blocks whose every token is learnt; a last block of one token has nothing to be learnt."""
    from alignkit.training.encoding import LabelledRow, LabelledTokens, LengthReport, documents, pack

    encoded = documents((row["text"] for row in rows), tokenizer)
    yield from (LabelledRow(LabelledTokens(block, block)) for block in pack(encoded, size) if len(block) > 1)
    return LengthReport(size)


@hookimpl
def alignkit_methods() -> list[Method]:
    """Offer `clm`."""
    return [clm]
