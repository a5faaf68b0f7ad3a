"""Settings of methods that learn from a policy's own answers: what is equal in all of them stands here once."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from alignkit.contract.settings import InputNames, LoRA, Optimisation, Precision, Settings, SnapshotSettings


class KL(Settings):
    """The pull back to the starting policy."""

    coef: NonNegativeFloat = 0.05
    """Reward taken off for each nat by which a token's log-probability exceeds the starting policy's."""
    target: NonNegativeFloat = 0.0
    """Adapt `coef` so that the mean KL of an answer comes to this; 6 is usual. 0: `coef` stays."""
    horizon: PositiveFloat = 10_000.0
    """How slowly `coef` adapts, in answers."""
    stop: NonNegativeFloat = 0.0
    """End an update's policy steps once a step's approximate KL a token from the sampling policy exceeds this. 0: all
    steps are taken."""


class Drawing(Settings):
    """How answers are sampled: from the whole distribution, nothing cut off."""

    max_new_tokens: PositiveInt | None = None
    """Answers are cut after so many tokens. Unset: at what the answers needed that the policy was taught by, as `sft`
    saves it in the policy's generation config, else at 64."""
    temperature: PositiveFloat = 1.0
    """Divides the logits, in sampling and in everything that is learnt from the samples."""


class Generation(Drawing):
    """How answers are sampled, and what one that was cut is worth."""

    added: ClassVar[frozenset[str]] = frozenset({"overlong"})

    unfinished: Literal["replace", "subtract", "mask"] = "replace"
    """The score of an answer that was cut becomes minus `penalty`, or `penalty` is taken off it, or nothing is learnt
    from its tokens, while its score counts as it is (DAPO's overlong filtering)."""
    penalty: NonNegativeFloat = 1.0
    """What an answer that was cut pays; with `subtract` and 0 it pays nothing."""
    overlong: float = Field(default=0.0, ge=0, lt=1)
    """With `subtract`: the share of `max_new_tokens` at its end over which the penalty rises from 0, so that answers
    that nearly were cut pay, too; 0.2 is DAPO's. 0: only what was cut pays."""

    @model_validator(mode="after")
    def _what_is_cut_is_treated_in_one_way(self) -> Self:
        if self.unfinished == "mask" and self.penalty != 1:
            raise ValueError('unfinished = "mask" lets a cut answer pay nothing, so leave penalty out')
        if self.overlong and (self.unfinished != "subtract" or not self.penalty):
            raise ValueError('overlong spreads a penalty that is taken off: set unfinished = "subtract" and a penalty')
        return self


Combine = Literal["mean", "worst", "conservative"]


class RewardShape(Settings):
    """What is done to scores before they are learnt from."""

    added: ClassVar[frozenset[str]] = frozenset({"combine", "spread", "held_out"})

    clip: NonNegativeFloat = 0.0
    """Scores beyond this, either way, are cut to it. 0: none are."""
    combine: Combine = "mean"
    """What is made of the scores of an ensemble: the heads of all reward models of the stage whose weight is above 0.
    Their mean; the least of them (worst-case optimisation); or their mean less `spread` standard deviations over them.
    Each is Coste et al. 2023 (arXiv 2310.02743), who take the variance for the last. It counts with the sum of the
    models' weights; other rewards are added."""
    spread: PositiveFloat = 1.0
    """With `conservative`: how many standard deviations over the members are taken off their mean."""
    held_out: Annotated[tuple[str, ...], InputNames("rewards")] = ()
    """Rewards of the stage, by name, from which nothing is learnt, as though their weight were 0. A reward model among
    them that learnt from other pairs, or began at another seed, is watched: where it falls while scores rise, that is
    told."""

    @model_validator(mode="after")
    def _doubt_is_taken_off_where_it_counts(self) -> Self:
        if self.spread != 1 and self.combine != "conservative":
            raise ValueError('spread is what combine = "conservative" takes off; set that, or leave spread out')
        return self


class Engine(Settings):
    """Answers from elsewhere: from servers that the machine names (`rollouts` in machines.toml), or from an update
    before."""

    ahead: Literal[0, 1] = 0
    """By how many updates answers are drawn ahead: 1 lets the next update be answered while this one is learnt, by
    weights that are one update old."""
    most_kl: PositiveFloat = 0.05
    """KL a token, in nats, between what answered and the policy that learns, above which the stage stops: a server has
    other weights than it was given. Of answers that are an update old, ten times as much."""
    correct: NonNegativeFloat = 3.0
    """The most that a token counts for, by the ratio of its probabilities by the policy and by what answered. 0: every
    token counts the same."""


class UpdateSettings(SnapshotSettings):
    """Settings of every method that samples answers and learns from them, again and again."""

    method: ClassVar[str]
    """The method's name, as it stands in messages."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate of the policy; 1e-6 to 3e-6 for billions of weights, 1e-4 for LoRA."""
    updates: PositiveInt = 100
    """How often answers are sampled and learnt from."""
    batch: PositiveInt = 64
    """Answers in an update."""
    answers: PositiveInt = 1
    """Answers to each prompt of an update; more share the work on the prompt, and see fewer prompts."""
    epochs: PositiveInt = 4
    """How often each answer is learnt from."""
    minibatches: PositiveInt = 4
    """Optimiser steps in an epoch."""
    generation: Drawing = Drawing()
    """How answers are sampled."""
    optimisation: Optimisation = Optimisation()
    """How weights are stepped; the schedule runs over updates."""
    lora: LoRA | None = None
    """Train small added matrices; the starting policy is then the same model without them. Their dropout must be 0."""
    precision: Precision = "auto"
    """Arithmetic of the models."""
    max_length: PositiveInt | None = None
    """Longest prompt with its answer, in tokens; a prompt that leaves no room for `generation.max_new_tokens` is left
    out. Unset: what the model reads, at most 1024."""
    max_lost: float = Field(default=0.05, ge=0, le=1)
    """Share of the prompts that may be left out for their length; more stops the stage."""
    measured: PositiveInt = 256
    """Held-out prompts, at most, that are answered before and after."""
    samples: NonNegativeInt = 8
    """How many of these answers are shown, each of those that gained most, that gained least, and of others."""

    @field_validator("lora")
    @classmethod
    def _nothing_is_dropped(cls, lora: LoRA | None) -> LoRA | None:
        if lora and lora.dropout:
            raise ValueError(
                f"dropout {lora.dropout} would do nothing: {cls.method} compares probabilities from pass to pass, and "
                "so drops nothing; set this stage's lora.dropout to 0"
            )
        return lora

    @model_validator(mode="after")
    def _batch_is_cut_evenly(self) -> Self:
        if self.batch % self.minibatches:
            raise ValueError(f"batch {self.batch} cannot be cut into {self.minibatches} minibatches of one size")
        if self.batch % self.answers:
            raise ValueError(f"batch {self.batch} is no whole number of groups of {self.answers} answers")
        return self


class SamplingSettings(UpdateSettings):
    """Settings of every method that raises the scores of a policy's own answers."""

    added: ClassVar[frozenset[str]] = frozenset({"engine", "snapshots_by", "stop"})

    snapshots_by: Literal["step", "kl"] | None = None
    """How snapshots are spaced: by updates, or by the root of the KL from the start, whatever that comes to; of the
    latter between half as many and as many are kept. Unset: by KL where `stop` chooses one of them, else by updates."""
    stop: Literal["warn", "auto"] = "warn"
    """What is done once the reward is gamed, as what it gains for each nat of KL tells, and what rewards that are held
    out gain: warn, or end the stage with the best of its snapshots."""
    kl: KL = KL()
    """The pull back to the starting policy."""
    generation: Generation = Generation()
    """How answers are sampled."""
    engine: Engine = Engine()
    """Answers from elsewhere: from servers that the machine names, or from an update before."""
    reward: RewardShape = RewardShape()
    """What is done to scores before they are learnt from."""
    patience: NonNegativeInt = 4
    """Updates from the start in which all answers may score the same; then the stage fails, since it learns nothing.
    0: it goes on, as a reward may want that is seldom won."""

    @property
    def needs_start(self) -> bool:
        """Whether the policy is compared with its start."""
        return self.kl.coef > 0 or self.stop == "auto" or (self.snapshots > 0 and self.snapshots_by == "kl")

    @property
    def spaced_by_kl(self) -> bool:
        """Whether snapshots are spaced by KL."""
        return (self.snapshots_by or ("kl" if self.stop == "auto" else "step")) == "kl"

    @model_validator(mode="after")
    def _spacing_is_of_something(self) -> Self:
        if self.snapshots_by and not self.snapshots:
            raise ValueError("snapshots_by spaces nothing; set snapshots to how many shall be kept")
        if self.stop == "auto" and not self.snapshots:
            raise ValueError('stop = "auto" keeps the best of the snapshots; set snapshots, 12 are usual')
        return self


class GroupSettings(SamplingSettings):
    """Settings of methods that judge each answer by the others to its prompt."""

    answers: PositiveInt = 8
    """Answers to each prompt, which are compared with each other; more make a steadier comparison. At least 2."""
    epochs: PositiveInt = 1
    """How often each answer is learnt from."""
    clip: PositiveFloat = 0.2
    """How far a token's probability may move in one update before its gradient stops, as a share."""
    trained_layers: PositiveInt | None = None
    """Train only so many of the upper layers; what the lower ones make of an answer is then computed once and serves
    policy and start in all epochs. Unset: all weights learn."""

    @field_validator("answers")
    @classmethod
    def _there_is_something_to_compare(cls, answers: int) -> int:
        if answers == 1:
            raise ValueError(
                f"{cls.method} judges an answer by the others to its prompt, so one answer a prompt teaches nothing; "
                "set answers to 2 or more"
            )
        return answers

    @model_validator(mode="after")
    def _one_way_to_train_less(self) -> Self:
        if self.trained_layers and self.lora:
            raise ValueError("trained_layers trains upper layers and lora added matrices; choose one of them")
        return self
