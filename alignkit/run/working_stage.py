"""The stage as a running method sees it: its folder, its journal, its checkpoints, its artifact."""

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, Unpack

from alignkit import noise
from alignkit.contract.events import (
    Better,
    Bounds,
    Certainty,
    Event,
    Metrics,
    Result,
    Rows,
    Sample,
    SampleKind,
    Warned,
    as_written,
    plain,
)
from alignkit.contract.judges import JudgeClient
from alignkit.contract.kinds import Artifact, Judge, Policy, Records, Reward, RewardModel, Snapshot
from alignkit.contract.names import NAME
from alignkit.contract.reward_function import Score
from alignkit.contract.stage import K
from alignkit.data.records import Part, shaped
from alignkit.errors import StageError
from alignkit.plugins import Plugins
from alignkit.run.order import Order, start_of
from alignkit.run.stopping import Left, Stop
from alignkit.store import checkpoints, rundir
from alignkit.store.durable import publish, sync_and_list
from alignkit.store.journal import Journal
from alignkit.store.leases import Lease
from alignkit.store.locks import busy
from alignkit.text import writable

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


A = TypeVar("A", bound=Artifact)
MOST_ROWS = 1000
"""Of the rows that are kept for pictures."""


class WorkingStage:
    """What a method may ask and tell (see `alignkit.Stage`). Of several processes only the first one writes."""

    def __init__(
        self,
        order: Order,
        partial: Path,
        stop: Stop,
        rank: int,
        heard: Callable[[Event], None] | None,
        plugins: Callable[[], Plugins],
    ) -> None:
        self.name, self.seed, self.offline = order.stage, order.seed, order.offline
        self.rank, self.world = rank, order.machine.world
        self.resources = ExitStack()
        """What ends with the stage, however that ends."""
        self.outcome: list[Result] = []
        """The results so far, those of before a resume among them."""
        self.made: Artifact | None = None
        """What the method has saved."""
        self.lease: Lease | None = None
        """By which this process has the stage's folder, where it is the first one."""
        self._order, self._partial, self._stop, self._plugins = order, partial, stop, plugins
        self.told_before = 0
        """Lines of the journal that attempts before this one have written."""
        self._parts: dict[str, int] = {}
        self._damaged: list[tuple[str, str]] = []
        # Others begin when the first of several processes has read the newest checkpoint, and removed damaged ones.
        kept = partial / rundir.CHECKPOINTS
        self._resumed = checkpoints.newest(kept, lambda *what: self._damaged.append(what), read=rank == 0)
        facts = self._resumed.facts if self._resumed else {}
        self._began = time.monotonic() - float(facts.get("seconds", 0.0))
        self._journal = None if rank else self._open_journal(facts, heard)

    def _open_journal(self, facts: Mapping[str, Any], heard: Callable[[Event], None] | None) -> Journal:
        checkpoints.discard_others(self._partial / rundir.CHECKPOINTS, self._resumed)
        self._drop_snapshots(lambda step: step > (self.resumed_from or 0))
        if heard:
            final = rundir.finished_folder(self._partial)
            heard(start_of(self._order, final, resumed=self._resumed is not None))
        journal = Journal(self._partial, facts.get("journal", {}), heard)
        self.told_before = journal.lines
        self.outcome += [Result(stage=self.name, **result) for result in facts.get("results", ())]
        for name, wrong in self._damaged:
            problem = f"the checkpoint {name} is damaged ({wrong})"
            journal.tell(Warned(self.name, problem, "an older one is used; check the disk if this happens again"))
        for name, rest in journal.cut.items():
            problem = f"{name} was cut off ({rest} are left), so what was told before is missing in the report"
            journal.tell(Warned(self.name, problem, "the stage's result is not affected; check the disk"))
        return journal

    @property
    def folder(self) -> Path:
        scratch = self._partial / rundir.SCRATCH
        scratch.mkdir(exist_ok=True)
        return scratch

    @property
    def cache(self) -> Path:
        folder = rundir.cache_folder(rundir.runs_of(self._partial))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def seconds(self) -> float:
        """Time worked, that of interrupted attempts up to their last commit included."""
        return time.monotonic() - self._began

    @property
    def stopping(self) -> bool:
        return self._stop.asked if self.world == 1 else _any_process(self._stop.asked)

    def leave(self) -> NoReturn:
        raise Left

    def log(self, step: int, of: int | None, values: Mapping[str, float]) -> None:
        self._stop.step_taken()
        plain = {name: float(value) for name, value in values.items()}
        self._tell(Metrics(self.name, step, of, plain, round(self.seconds, 3)))

    def result(
        self,
        name: str,
        before: float | None,
        after: float | None,
        floor: float | None = None,
        rows: int | None = None,
        **certainty: Unpack[Certainty],
    ) -> None:
        was, now, least = (None if value is None else float(value) for value in (before, after, floor))
        few = rows is not None and rows < noise.ENOUGH_ROWS
        told = any(result.rows is not None and result.rows < noise.ENOUGH_ROWS for result in self.outcome)
        certain = Certainty(**{"better": "" if least is None else "higher", **certainty})
        result = as_written(Result(self.name, name, was, now, least, rows, **certain))
        self.outcome.append(result)
        self._tell(result)
        if least is not None and now is not None and not now > least:
            problem = f"{name} is {now:.3g}, no better than the {least:.3g} that anybody reaches"
            self.warn(problem, "train longer or with another learning rate, or look at the data")
        if few and not told:
            problem = f"{name} was measured on {rows} rows, which are too few to tell a difference from chance"
            self.warn(
                problem, f"keep at least {noise.ENOUGH_ROWS} aside: raise the source's held_out, or give more rows"
            )

    def measure(
        self,
        name: str,
        before: Sequence[float] | float | None,
        after: Sequence[float],
        floor: float | None = None,
        better: Better = "higher",
        bounds: Bounds | None = None,
    ) -> None:
        was = before if before is None or isinstance(before, int | float) else fmean(before)
        change = None if before is None else noise.change_interval(before, after)
        certain = Certainty(interval=noise.mean_interval(after), change=change, better=better, bounds=bounds)
        self.result(name, was, fmean(after), floor, len(after), **certain)

    def rows(self, columns: Mapping[str, Sequence[float]]) -> None:
        if len(set(map(len, columns.values()))) > 1:
            raise StageError(f"columns of rows differ in length ({', '.join(columns)})", f"stage {self.name!r}")
        self._tell(Rows(self.name, {name: _thinned(values) for name, values in columns.items()}))

    def sample(self, row: Mapping[str, str | float], kind: SampleKind = "") -> None:
        self._tell(Sample(self.name, dict(row), kind))

    def warn(self, problem: str, remedy: str) -> None:
        self._tell(Warned(self.name, problem, remedy))

    def _tell(self, event: Event) -> None:
        if self._journal:
            self._journal.tell(as_written(event))

    def commit(self, step: int, write: Callable[[Path], None]) -> None:
        staged = checkpoints.staged_folder(self._partial / rundir.CHECKPOINTS, step)
        with self._stop.only_noted():
            self._first(lambda: self._begin(staged))
            self._written(lambda: write(staged))
            self._first(lambda: self._commit(staged))

    def _begin(self, staged: Path) -> None:
        self.check_held()
        checkpoints.begin(staged)

    def _commit(self, staged: Path) -> None:
        self.check_held()
        checkpoints.commit(staged, self._facts())

    def check_held(self) -> None:
        """Raise LockedError where another machine has taken the stage over, as this process was not heard of."""
        if self.lease and self.lease.is_taken_over:
            raise busy(self._partial)

    def _facts(self) -> dict[str, Any]:
        """Return what is noted beside a checkpoint."""
        return {
            "seconds": self.seconds,
            "journal": self._journal.marks() if self._journal else {},
            "results": [_plain_result(result) for result in self.outcome],
        }

    def _first(self, work: Callable[[], None]) -> None:
        """Let the first process do something while the others wait; an error ends all."""
        if _together(self.world):
            from alignkit.training import parallel

            parallel.first(work)
        elif self.rank == 0:
            work()

    def _written(self, write: Callable[[], None]) -> None:
        """Let the first process write, or each, where weights are cut up among them."""
        if _together(self.world):
            from alignkit.training import parallel

            if parallel.mesh():
                parallel.in_all(write)
                return
        self._first(write)

    def latest(self) -> Path | None:
        return self._resumed.folder if self._resumed else None

    @property
    def resumed_from(self) -> int | None:
        return self._resumed.step if self._resumed else None

    @property
    def artifact(self) -> Path:
        return self._partial / rundir.ARTIFACT

    def begin_part(self, part: str, steps: int) -> int:
        if part in self._parts or (self._parts and "" in (part, *self._parts)):
            problem = (
                f"a second loop {f'named {part!r} ' if part else ''}began, and its checkpoints cannot be told apart"
            )
            raise StageError(problem, remedy='give each a name of its own: train_rows(..., part="round-1")')
        if part and not NAME.fullmatch(part):
            raise StageError(f"a loop cannot be named {part!r}", remedy="use a-z, 0-9 and hyphens")
        before = sum(self._parts.values())
        self._parts[part] = steps
        return before

    def open_reward(self, reward: Reward) -> Score:
        from alignkit.training import opening

        if isinstance(reward, RewardModel) and (serving := self._order.machine.rewards):
            from alignkit.training.served_scores import RewardServers

            return RewardServers(serving, self.folder, self.resources).open(reward, self.warn)
        return opening.open_reward(reward, self._plugins(), cache=self.cache, warn=self.warn)

    def open_judge(self, judge: Judge) -> JudgeClient:
        from alignkit.training import opening

        return opening.open_judge(judge, self._plugins(), cache=self.cache)

    def save_policy(self, model: "PreTrainedModel | PeftModel", tokenizer: "PreTrainedTokenizerBase") -> Policy:
        from alignkit.training import finite, saving, sharding

        finite.check_finite(model)
        whole, stands = sharding.unsharded(model), self._final_artifact()

        def save() -> None:
            saving.save_policy(whole, tokenizer, self._cleared(), stands=stands)
            for kept in rundir.snapshots_in(self.artifact).values():
                saving.complete_snapshot(whole, tokenizer, kept)

        self._first(save)
        kept = tuple(Snapshot(step=step, path=path) for step, path in rundir.snapshots_in(self.artifact).items())
        facts = {"name": self.name, "fingerprint": self._order.fingerprint}
        return self._saved(Policy(**facts, path=self.artifact, snapshots=kept))

    def save_snapshot(
        self, step: int, model: "PreTrainedModel | PeftModel", only: Collection[int] | None = None
    ) -> None:
        from alignkit.training import finite, saving, sharding

        finite.check_finite(model)
        whole, stands = sharding.unsharded(model), rundir.snapshot_folder(self._final_artifact(), step)

        def save() -> None:
            self.check_held()
            self._drop_snapshots(lambda other: other == step or (only is not None and other not in only))
            folder = rundir.snapshot_folder(self.artifact, step)
            staged = folder.with_suffix(".partial")
            shutil.rmtree(staged, ignore_errors=True)
            saving.save_snapshot(whole, staged, stands)
            sync_and_list(staged)
            publish(staged, folder)

        self._first(save)

    def _drop_snapshots(self, dropped: Callable[[int], bool]) -> None:
        for step, path in rundir.snapshots_in(self.artifact).items():
            if dropped(step):
                shutil.rmtree(path)

    def save_reward(
        self,
        model: "PreTrainedModel | PeftModel",
        tokenizer: "PreTrainedTokenizerBase",
        mean: float,
        std: float,
        heads: Sequence[float] = (),
    ) -> RewardModel:
        from alignkit.training import finite, saving, sharding
        from alignkit.training.weight_files import ScoreScale

        finite.check_finite(model)
        whole, stands, scale = sharding.unsharded(model), self._final_artifact(), ScoreScale(mean, std, tuple(heads))
        self._first(lambda: saving.save_reward(whole, tokenizer, self._cleared(), scale, stands=stands))
        return self._saved(RewardModel(name=self.name, fingerprint=self._order.fingerprint, path=self.artifact))

    def save_rows(self, kind: type[K], rows: Iterable[Mapping[str, object]]) -> K:
        facts: dict[str, Any] = {"name": self.name, "fingerprint": self._order.fingerprint, "path": self.artifact}
        file = self.artifact / "data.jsonl"
        if not issubclass(kind, Records):
            if self.rank == 0:
                self._write_rows(file, rows)
            return self._saved(kind(**facts))
        ours = {column for columns in kind.columns for column in columns} | {"held_out"}
        part = Part(name=self.name, paths=(file,), made=True)
        checked = (_checked(row, number, kind, part) for number, row in enumerate(rows, start=1))
        more = self._write_rows(file, checked) - ours if self.rank == 0 else set()
        return self._saved(kind(**facts, parts=(part.model_copy(update={"keep": tuple(sorted(more))}),)))

    def _saved(self, artifact: A) -> A:
        self.made = artifact
        return artifact

    def _write_rows(self, file: Path, rows: Iterable[Mapping[str, object]]) -> set[str]:
        """Write rows, and give the names of the columns that all of them have."""
        shared: set[str] | None = None
        self._cleared()
        with file.open("w", encoding="utf-8") as lines:
            for row in rows:
                shared = set(row) if shared is None else shared & row.keys()
                lines.write(json.dumps(writable(row), ensure_ascii=False) + "\n")
        if shared is None:
            raise StageError("it made no row at all", remedy="look at its warnings and its settings")
        return shared

    def _cleared(self) -> Path:
        """Return a folder for the artifact, with snapshots alone: an interrupted attempt may have left half of one."""
        self.check_held()
        self.artifact.mkdir(exist_ok=True)
        kept = rundir.snapshots_in(self.artifact).values()
        for path in self.artifact.iterdir():
            if not any(one.is_relative_to(path) for one in kept):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return self.artifact

    def _final_artifact(self) -> Path:
        return rundir.finished_folder(self._partial).resolve() / rundir.ARTIFACT

    def close(self) -> None:
        if self._journal:
            self._journal.close()


def _thinned(values: Sequence[float]) -> list[float]:
    """Return values that are evenly spaced among the given ones, with five digits, which no picture needs more of."""
    step = max(1.0, len(values) / MOST_ROWS)
    return [float(f"{values[int(place * step)]:.5g}") for place in range(min(len(values), MOST_ROWS))]


def _plain_result(result: Result) -> dict[str, Any]:
    return {key: value for key, value in plain(result).items() if key != "stage"}


def _checked(row: Mapping[str, object], number: int, kind: type[Records], part: Part) -> Mapping[str, object]:
    shaped(dict(row), f"row {number} of what it made", kind.__name__, kind.columns, part)
    return row


def _any_process(asked: bool) -> bool:
    """Agree over all processes: a signal may have reached only one, and all must leave after the same step."""
    from alignkit.training import parallel

    return parallel.any_of(asked)


def _together(world: int) -> bool:
    """Return whether a stage's processes have met; those of a method of rows alone do not know of each other."""
    if world == 1:
        return False
    from alignkit.training import parallel

    return parallel.world() > 1


def rank_of_this_process() -> int:
    """Return which of a stage's processes this is, as torchrun tells it."""
    return int(os.environ.get("RANK", "0"))
