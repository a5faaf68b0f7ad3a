"""The stage: all that a method knows of its surroundings."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, Unpack

from alignkit.contract.events import Better, Bounds, Certainty, SampleKind
from alignkit.contract.judges import JudgeClient
from alignkit.contract.kinds import Judge, Policy, Records, Reward, RewardModel, Scores
from alignkit.contract.reward_function import Score

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

K = TypeVar("K", bound=Records | Scores)


class Stage(Protocol):
    """What a running method may ask and tell. It never builds a path or an artifact itself."""

    @property
    def name(self) -> str: ...

    @property
    def seed(self) -> int:
        """From the recipe's seed and the stage's name, so that variants see the same data order.

        Python's, numpy's and torch's generators are seeded with it; a method of rows alone, that is started without
        torch, seeds torch itself if it draws with it.
        """
        ...

    @property
    def folder(self) -> Path:
        """A scratch folder of this stage alone; what lies there when the stage is finished is removed."""
        ...

    @property
    def cache(self) -> Path:
        """A folder that all stages share and that outlives them, for what is costly and can be made again. A file's
        name must say all that its content depends on."""
        ...

    @property
    def offline(self) -> bool: ...

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    @property
    def stopping(self) -> bool:
        """A signal came: finish the step, commit, and call `leave`."""
        ...

    def leave(self) -> None:
        """Stop here, to be resumed from the last commit; does not return."""
        ...

    def log(self, step: int, of: int | None, values: Mapping[str, float]) -> None:
        """Report the figures of one optimiser step (or update) out of so many."""
        ...

    def result(
        self,
        name: str,
        before: float | None,
        after: float | None,
        floor: float | None = None,
        rows: int | None = None,
        **certainty: Unpack[Certainty],
    ) -> None:
        """Report a result: what a measure was before and after, and what anybody reaches without learning.

        The more the better, where there is a `floor`: a result that is not above it is warned of. `rows` says on how
        many held-out rows it was measured; where they are few, people are told so. `interval`, `change`, `better`
        and `bounds` are those of `alignkit.Result`; `measure` finds them out.
        """
        ...

    def measure(
        self,
        name: str,
        before: Sequence[float] | float | None,
        after: Sequence[float],
        floor: float | None = None,
        better: Better = "higher",
        bounds: Bounds | None = None,
    ) -> None:
        """Report a result that was measured row by row, with its 95 % interval and that of its change.

        `after` has a number for each held-out row, `before` those of the same rows, or the value that is known without
        measuring (one half of the pairs). The result is their mean: of 0, 1/2 and 1 a share (`alignkit.noise` says how
        intervals are made).
        """
        ...

    def rows(self, columns: Mapping[str, Sequence[float]]) -> None:
        """Keep what was measured of each held-out row, for the pictures of the report; long columns are thinned.

        Pictures are drawn of `margin` (of a pair, the chosen answer's score less the rejected one's) against
        `longer` (by how many tokens it is longer), and of `reward` and `length`, each with what it was before as
        `reward before` and `length before`.
        """
        ...

    def sample(self, row: Mapping[str, str | float], kind: SampleKind = "") -> None:
        """Show one answer (or example) to people: texts, and numbers of them, each under a name that has the name of
        its text in it (`after`, `reward after`). `kind` says whether it is one of the best, of the worst, or any."""
        ...

    def warn(self, problem: str, remedy: str) -> None: ...

    def commit(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint: `write` fills a folder, which is hashed and renamed into place.

        A step that was committed before is replaced. Of several processes, all of which call this, the first one alone
        writes, unless weights are cut up among them: then each writes, into one folder. An error of one is raised in
        all.
        """
        ...

    def latest(self) -> Path | None:
        """Return the checkpoint that this attempt goes on from, or None where it begins at the start.

        It is the newest one whose files were all as they had been written when the attempt began; what the attempt
        itself commits is for the next one.
        """
        ...

    def begin_part(self, part: str, steps: int) -> int:
        """Note that a loop of so many steps begins; return how many steps those before it take.

        The loops of `alignkit.kit` call it, so that their checkpoints are told apart. Raise StageError where a second
        loop begins and not each of them has a name of its own.
        """
        ...

    def open_reward(self, reward: Reward) -> Score:
        """Return a function from answers to scores, whatever the reward is.

        A model reads prompt and answer with its own tokenizer, so its policy may have another; a chat is rendered by
        its own template, and answers that it cannot read whole are told once. Its scores are normalised where their
        mean and spread were measured, and not yet weighted. Of a reward model with several heads the function is a
        `HeadedScore`, which tells each of them. Raise RecipeError where the label does not fit, no plugin
        offers the function, or the judge rates nothing.
        """
        ...

    def open_judge(self, judge: Judge) -> JudgeClient:
        """Return what compares answers, and rates or writes where it can, whatever the judge is.

        What was paid for is kept in `cache` and not asked again. Raise RecipeError where no plugin offers the judge, or
        what it needs of its surroundings is missing, such as a key.
        """
        ...

    def save_policy(self, model: "PreTrainedModel | PeftModel", tokenizer: "PreTrainedTokenizerBase") -> Policy:
        """Save the result, in place of what was saved before.

        Measure and show it afterwards: whatever fails then is a warning, and costs no training.
        """
        ...

    def save_snapshot(
        self, step: int, model: "PreTrainedModel | PeftModel", only: Collection[int] | None = None
    ) -> None:
        """Keep a policy on the way beside the one that will be saved, whose `snapshots` it becomes one of.

        `step` is the optimiser step, or update, that was just taken; one that was kept before is replaced, and with
        `only` those of other steps are dropped. The loops of `alignkit.kit` call it as `snapshots` of their settings
        says. Call it before the step's commit, in all processes: where an attempt goes on, what was kept after its
        checkpoint is forgotten.
        """
        ...

    def save_reward(
        self,
        model: "PreTrainedModel | PeftModel",
        tokenizer: "PreTrainedTokenizerBase",
        mean: float,
        std: float,
        heads: Sequence[float] = (),
    ) -> RewardModel:
        """Save a reward model with the mean and spread of its scores, by which its users normalise.

        Of a model with several heads a score is the mean of theirs; `heads` is then the mean of each head's scores.
        """
        ...

    def save_rows(self, kind: type[K], rows: Iterable[Mapping[str, object]]) -> K:
        """Save records or scores; a row with `held_out = true` is on the held-out side.

        Columns that all rows have besides those of the kind stay with them. Raise DataError where a row is none of its
        kind, StageError where there is no row at all.
        """
        ...
