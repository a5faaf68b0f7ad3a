"""Policies on the way of a loop of updates: which are kept, and which of them the stage ends with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignkit.contract.sampling_settings import SamplingSettings
from alignkit.contract.stage import Stage
from alignkit.errors import StageError
from alignkit.training import parallel
from alignkit.training.gaming import Gaming
from alignkit.training.snapshots import KLSpacing, is_due
from alignkit.training.step import Learner, load_learner, save_weights

WEIGHTS = "after-{}.safetensors"
"""The trained weights of a snapshot, in the stage's scratch folder."""


@dataclass
class OnTheWay:
    """What is kept of the way so far."""

    updates: int
    count: int
    """Of snapshots, at most."""
    chooses: bool
    """The stage ends once its reward is gamed, with the best snapshot."""
    spacing: KLSpacing | None
    guessed: bool
    """What is learnt from is a guess, which may be gamed; a function means the same however far the policy goes."""
    gaming: Gaming = field(default_factory=Gaming)

    @classmethod
    def of(cls, settings: SamplingSettings, *, guessed: bool) -> "OnTheWay":
        count, chooses = settings.snapshots, settings.stop == "auto"
        spacing = KLSpacing(count) if count and settings.spaced_by_kl else None
        return cls(settings.updates, count, chooses, spacing, guessed)

    @property
    def ends(self) -> bool:
        """Whether no further update is taken."""
        return self.chooses and self.gaming.is_gamed and self.gaming.best is not None

    def check(self, stage: Stage) -> None:
        """Warn where nothing can end the stage that shall be ended."""
        if self.chooses and not self.guessed:
            stage.warn(
                'stop = "auto" ends nothing: all rewards that are learnt from are functions, which mean the same '
                "however far the policy goes",
                "leave stop out, or learn from a reward model",
            )

    def taken(self, stage: Stage, actor: Learner, done: int, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of an update, and keep the policy after it where it is one of those that are kept."""
        gamed = self.gaming.is_gamed
        if self.guessed:
            self.gaming.see(metrics)
        if self.gaming.is_gamed and not gamed and not self.chooses and not self.gaming.warned:
            self.gaming.warned = True
            remedy = 'read the samples; raise kl.coef, give the reward more pairs, or set stop = "auto"'
            stage.warn(f"update {done}: the reward may be gamed: {self.gaming.told}", remedy)
        if done == self.updates or not self._keeps(done, metrics):
            return
        others = self.spacing.kept if self.spacing else None
        stage.save_snapshot(done, actor.model, others)
        if self.chooses:
            self.gaming.keep(done, others)
            save_weights(actor, _file(stage, done))
            if parallel.rank() == 0:
                needed = [_file(stage, step) for step in self.gaming.kept]
                for path in stage.folder.glob(WEIGHTS.format("*")):
                    if path not in needed:
                        path.unlink()

    def _keeps(self, done: int, metrics: Mapping[str, float]) -> bool:
        if self.spacing is None:
            return is_due(done, self.updates, self.count)
        if "objective/kl" not in metrics:
            remedy = 'set snapshots_by = "step", or give it a start to be compared with'
            raise StageError(
                "the KL from the start is not measured, so snapshots cannot be spaced by it", remedy=remedy
            )
        return self.spacing.keeps(done, metrics["objective/kl"], self.gaming.best)

    def go_back(self, stage: Stage, actor: Learner, done: int) -> None:
        """Where the reward was gamed, put the policy back to the best snapshot, and say so."""
        best = self.gaming.best
        if not self.ends or best is None:
            return
        load_learner(actor, _file(stage, best))
        stage.warn(
            f"the reward is gamed: {self.gaming.told}; stopped after update {done} of {self.updates}, and the policy "
            f"after update {best} is the one that is kept",
            'give the reward more pairs, or raise kl.coef; stop = "warn" takes all updates',
        )

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it."""
        return {"spacing": asdict(self.spacing) if self.spacing else None, "gaming": self.gaming.facts()}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written."""
        self.spacing = KLSpacing(**facts["spacing"]) if facts["spacing"] else None
        self.gaming = Gaming.of(facts["gaming"])


def _file(stage: Stage, step: int) -> Path:
    """Return where the trained weights lie that a snapshot has."""
    return stage.folder / WEIGHTS.format(step)
