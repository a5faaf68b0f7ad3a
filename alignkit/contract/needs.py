"""What a method will do with its models and rows, so that a recipe can be checked before anything is trained.

A method offers a function from its settings to one of these: the one that names the loop it runs. From it `alignkit
check` estimates memory, time and disk, finds rows that do not fit, and tries the architecture in small. A method
without one is run all the same; what it needs, `--smoke` can tell.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from alignkit.contract.asking_settings import AskingSettings
from alignkit.contract.row_settings import RowSettings, TrainingSettings
from alignkit.contract.sampling_settings import GroupSettings, SamplingSettings
from alignkit.contract.settings import LoRA, Precision


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What every loop has. Use one of the kinds below."""

    precision: Precision = "auto"
    lora: LoRA | None = None
    max_length: int | None = None
    """Tokens of the longest row; None: what the model reads, at most 1024."""
    max_lost: float = 1.0
    """Share of the rows that may be cut or left out for their length."""
    measured: int = 0
    """Held-out rows that are measured, before and after."""
    learn: Literal["all", "last"] = "all"
    """Of a chat: learn all that the assistant says, or its last turn alone."""
    snapshots: int = 0
    """Policies that are kept beside the last one."""
    new_tokens: int | None = 0
    """Tokens of a sampled answer, at most; None: what the policy was taught. 0: none is sampled."""
    new_tokens_key: str = "generation.max_new_tokens"
    """The setting that says so."""
    upper_layers: int | None = None
    """So many of the policy's upper layers learn; None: all."""
    same_tokens: bool = False
    """All its policies must have the tokens of the first."""


@dataclass(frozen=True, kw_only=True)
class RowNeeds(Needs):
    """Rows that are given, each learnt from in a number of epochs."""

    batch: int
    """Rows in an optimiser step."""
    epochs: float
    regrouped: bool = False
    """It learns from other rows than those that it reads, or in an order of its own, so sources cannot be mixed."""


@dataclass(frozen=True, kw_only=True)
class TrainerNeeds(RowNeeds):
    """Padded rows through a trainer of TRL or transformers (`run_trainer`)."""

    regrouped: bool = True
    scores: bool = False
    """It trains a score, read at a row's last token, of both sides of a pair; not a language model."""
    rows_at_once: int | None = None
    """Rows in a pass; None: as many as `trainer_options` chooses."""
    reads: float = 0.0
    """How often each row is read besides, by the policy and by its start."""
    apart: bool = False
    """The two answers of a pair are two rows."""


@dataclass(frozen=True, kw_only=True)
class PackedNeeds(RowNeeds):
    """Rows through `train_rows`, packed."""

    scores: bool = False
    """It trains a score, read at a row's last token, of both sides of a pair; not a language model."""
    heads: int = 1
    """So many scores, which are an ensemble."""
    shown: int = 0
    """Held-out prompts that are answered at the end."""


@dataclass(frozen=True, kw_only=True)
class PairNeeds(RowNeeds):
    """Pairs through `train_pairs`, or single answers, packed."""

    reads: float = 1.0
    """How often each is read besides, without gradient; 1: once by the start, before."""
    apart: bool = False
    """A row is one answer; the two of a pair are two rows."""
    gathered: bool = False
    """All answers to a prompt are learnt together, and count as one row of the batch; a lone answer is left out."""


@dataclass(frozen=True, kw_only=True)
class SamplingNeeds(Needs):
    """Updates on a policy's own answers (`open_loop`)."""

    updates: int
    batch: int
    """Answers in an update."""
    answers: int
    """To each prompt."""
    epochs: int
    minibatches: int
    critic: Literal["separate", "shared"] | None = None
    """A critic with a body of its own, or that is a head on the policy."""
    start: bool = True
    """The policy is compared with the one that it started as."""


@dataclass(frozen=True, kw_only=True)
class EvaluationNeeds(Needs):
    """Each policy answers the same held-out prompts, and nothing is trained."""

    prompts: int
    pool: int = 0
    """Answers that one of them gives besides, for what is attainable."""
    answers: int = 1
    """To each prompt; several are scored, but not read again."""
    on_the_way: bool = False
    """The policies that were kept on the way to all but the first are asked, too."""


def can_mix(needs: Needs | None) -> bool:
    """Return whether a method reads its rows in the order that a mix says."""
    return isinstance(needs, SamplingNeeds) or (isinstance(needs, RowNeeds) and not needs.regrouped)


def trainer_needs(settings: TrainingSettings) -> TrainerNeeds:
    """Return what `run_trainer` will do with a method's rows, with its own rows in a pass."""
    return TrainerNeeds(
        batch=settings.batch,
        epochs=settings.epochs,
        **_common(settings),
    )


def packed_needs(settings: TrainingSettings) -> PackedNeeds:
    """Return what `train_rows` will do where it packs a method's rows."""
    return PackedNeeds(
        batch=settings.batch,
        epochs=settings.epochs,
        **_common(settings),
    )


def pair_needs(settings: RowSettings) -> PairNeeds:
    """Return what `train_pairs` will do."""
    return PairNeeds(
        batch=settings.batch,
        epochs=settings.epochs,
        max_lost=settings.max_lost,
        **_common(settings),
    )


def sampling_needs(settings: SamplingSettings) -> SamplingNeeds:
    """Return what a loop of updates without a critic will do."""
    return SamplingNeeds(
        updates=settings.updates,
        batch=settings.batch,
        answers=settings.answers,
        epochs=settings.epochs,
        minibatches=settings.minibatches,
        start=settings.needs_start,
        max_lost=settings.max_lost,
        **_common(settings),
        new_tokens=settings.generation.max_new_tokens,
    )


def group_needs(settings: GroupSettings) -> SamplingNeeds:
    """Return what a loop of updates does that compares the answers to one prompt."""
    return replace(sampling_needs(settings), upper_layers=settings.trained_layers)


def evaluation_needs(settings: AskingSettings) -> EvaluationNeeds:
    """Return what letting policies answer held-out prompts takes, once each."""
    return EvaluationNeeds(
        prompts=settings.prompts,
        precision=settings.precision,
        max_length=settings.max_length,
        max_lost=settings.max_lost,
        new_tokens=settings.max_new_tokens,
        new_tokens_key="max_new_tokens",
    )


def _common(settings: TrainingSettings | SamplingSettings) -> dict[str, Any]:
    names = ("precision", "lora", "max_length", "measured", "snapshots")
    return {name: value for name, value in settings if name in names}
