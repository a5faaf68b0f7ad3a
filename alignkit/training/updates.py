"""The loop of methods that learn from a policy's own answers: sample, score, learn, and again.

A method takes the updates one by one and says what is learnt from each. What is equal in all of them is here: opening
what a stage names, the updates, the metrics of answers, checkpoints, and what is measured before and after.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, TypeVar

import torch

from alignkit.contract.kinds import Policy
from alignkit.contract.sampling_settings import SamplingSettings
from alignkit.contract.stage import Stage
from alignkit.errors import PluginError, StageError
from alignkit.training import held_out, layouts, losses, off_policy, parallel
from alignkit.training.answering import Answering, Asked, Own, answering_of
from alignkit.training.layouts import Around, Models, ValueHead
from alignkit.training.mixed_rows import in_order_of, order_of
from alignkit.training.multipliers import Multiplier, ascend, charged
from alignkit.training.on_the_way import OnTheWay
from alignkit.training.roles import Opened, Roles, SettingsC, SettingsT, longest_answer, open_roles
from alignkit.training.rollouts import Rollout, Tokens, generator_for
from alignkit.training.row_order import in_turn
from alignkit.training.scoring import Scored
from alignkit.training.seen import Seen, see, shaped
from alignkit.training.step import (
    CommitTimer,
    Learner,
    commit_or_leave,
    load_learners,
    make_learner,
    save_learners,
    set_learning_rate,
)
from alignkit.training.warning_signs import WarningSigns

ADAM_EPS = 1e-5
"""As in lm-human-preferences: with 1e-8 the first updates are too bold."""
CRITIC_RATE = 3e-5
"""Learning rate of a critic with a body of its own, where the settings leave it open."""
POLICY_METRICS = {
    "loss": "loss/policy_avg",
    "approxkl": "policy/approxkl_avg",
    "clipfrac": "policy/clipfrac_avg",
    "ratio": "val/ratio",
    "grad_norm": "policy/grad_norm",
}

PlainT = TypeVar("PlainT")
Log = Callable[[int, Mapping[str, float]], None]
Heed = Callable[[Stage, WarningSigns, int, Mapping[str, float]], None]
"""Is told of each update its number and its metrics."""


@dataclass(frozen=True)
class Ahead:
    """Answers to the prompts of an update that is still to come."""

    number: int
    answers: int
    """Answers to each prompt."""
    wait: Callable[[], Rollout]
    """Waits for the answers."""


@dataclass
class State:
    """What one update leaves to the next; what is random in an update depends on the seed and its number alone."""

    learners: dict[str, Learner]
    """What learns, by name: `policy`, and `critic` where there is one."""
    kl_coef: float
    way: OnTheWay
    """Policies on the way, and whether the stage ends with one of them."""
    done: int = 0
    """Updates that were taken."""
    watch: WarningSigns = field(default_factory=WarningSigns)
    multipliers: dict[str, Multiplier] = field(default_factory=dict)
    """What a unit of each cost takes off the reward, where costs are bounded."""
    ahead: Ahead | None = None
    """What is answered while an update is learnt."""

    @property
    def actor(self) -> Learner:
        return self.learners["policy"]


def start(
    models: Models, settings: SamplingSettings, critic_rate: float | None = None, *, guessed: bool = True
) -> State:
    """Return the state before the first update: the policy learns, and the critic where there is one.

    A critic that is a head on d hidden states learns at 1/d where no rate is given: a step then moves a value by
    about 1.
    """
    learners = {"policy": make_learner(models.policy.eval(), settings.learning_rate, settings.optimisation, ADAM_EPS)}
    if models.critic is not None:
        usual = 1 / models.critic.width if isinstance(models.critic, ValueHead) else CRITIC_RATE
        learners["critic"] = make_learner(models.critic.eval(), critic_rate or usual, settings.optimisation, ADAM_EPS)
    return State(learners, settings.kl.coef, OnTheWay.of(settings, guessed=guessed))


@dataclass(frozen=True)
class Loop(Generic[SettingsC]):
    """All that the updates of a stage are taken with."""

    models: Models
    state: State
    prompts: Sequence[Tokens]
    score: Callable[[Rollout], Scored]
    settings: SettingsC
    seed: int
    log: Log
    """Is told the number of updates that were taken and the metrics of the last; keeps checkpoints."""
    judged: bool = False
    """Judges say an answer's score: how likely it is better than another answer to its prompt."""
    answering: Answering | None = None
    """Who answers; None: the policy itself."""
    keep: Callable[[], None] | None = None
    """Keeps a checkpoint of the updates that were taken."""

    def updates(self) -> "Iterator[Update[SettingsC]]":
        """Yield the updates that are left, with learning rates set. Raise PluginError where one is not ended."""
        try:
            for number in range(self.state.done, 0 if self.state.way.ends else self.settings.updates):
                for learner in self.state.learners.values():
                    set_learning_rate(learner, number, self.settings.updates)
                yield Update(self, number)
                if self.state.done == number:
                    raise PluginError("an update was not ended", remedy="call update.done(metrics) before the next one")
                if self.state.way.ends:
                    break
        finally:
            if self.answering:
                self.answering.close()


class Update(Generic[SettingsC]):
    """One update: sample, score, read, let the method learn, and be done."""

    def __init__(self, loop: Loop[SettingsC], number: int) -> None:
        self.loop, self.number = loop, number
        self.chance = generator_for(loop.seed, "update", number)
        """What is random in this update is drawn from here, in the order of the calls."""
        self._tokens = 0
        self._began = self._last = perf_counter()
        self._spent = {"sample": 0.0, "score": 0.0}

    @property
    def asked(self) -> list[int]:
        """Return which prompts' turn it is."""
        return prompts_of_update(self.loop.settings, self.loop.prompts, self.number, self.loop.seed)

    def sample(
        self,
        answers: int | None = None,
        *,
        asked: Sequence[int] | None = None,
        start: float = 0.0,
        greedy: bool = False,
    ) -> Rollout:
        """Let the policy answer the prompts whose turn it is, `settings.answers` times each, side by side.

        `answers` is another number of them, `asked` are some of these prompts. `start` is the exponent of the starting
        policy in what answers, policy^(1 - start) * start^start at every token; `greedy` takes the likeliest token
        each time.
        """
        settings, models, together = self.loop.settings, self.loop.models, answers or self.loop.settings.answers
        rows = [row for row in (self.asked if asked is None else asked) for _ in range(together)]
        if start:
            mixed_with_start = replace(models, start_share=start, temperature=0.0 if greedy else models.temperature)
            longest = longest_answer(settings)
            rollout = layouts.sample(mixed_with_start, self.loop.prompts, rows, longest, self.chance)
            rollout = replace(rollout, version=self.number)
        elif settings.engine.ahead and asked is None and not greedy:
            rollout = self._kept_on_failure(lambda: self._drawn_ahead(rows, together))
        else:
            rollout = self._kept_on_failure(lambda: self._begin(rows, self.chance, greedy=greedy)())
        self._tokens += sum(map(len, rollout.answers))
        self._spend("sample")
        drawn = [] if start or greedy else rollout.logprobs  # others are another distribution's than the policy's
        return replace(rollout, logprobs=drawn, together=together)

    def _begin(self, rows: list[int], chance: torch.Generator, *, greedy: bool = False) -> Callable[[], Rollout]:
        """Begin to answer these rows of the prompts by the weights of now, and return what waits for the answers."""
        loop, number = self.loop, self.number
        answering = loop.answering or Own(loop.models)
        answering.give(number)
        temperature = 0.0 if greedy else loop.models.temperature
        wait = answering.answer(Asked(loop.prompts, rows, longest_answer(loop.settings), temperature), chance)
        return lambda: replace(wait(), version=number)

    def _drawn_ahead(self, rows: list[int], answers: int) -> Rollout:
        """Return the answers to these rows that were begun an update ago, where they were, and begin the next ones."""
        loop, state, following = self.loop, self.loop.state, self.number + 1
        begun, state.ahead = state.ahead, None
        here = begun is not None and (begun.number, begun.answers) == (self.number, answers)
        rollout = begun.wait() if begun and here else self._begin(rows, self.chance)()
        if begun and begun.number == following:
            state.ahead = begun
        elif following < loop.settings.updates:
            asked = prompts_of_update(loop.settings, loop.prompts, following, loop.seed)
            next_rows = [row for row in asked for _ in range(answers)]
            wait = self._begin(next_rows, generator_for(loop.seed, "ahead", following))
            state.ahead = Ahead(following, answers, wait)
        return rollout

    def _kept_on_failure(self, work: Callable[[], Rollout]) -> Rollout:
        """Return answers; where there are none, the updates that were taken are kept first."""
        try:
            return work()
        except StageError:
            self.loop.state.ahead = None
            if self.loop.keep:
                self.loop.keep()
            raise

    def score(self, rollout: Rollout) -> Scored:
        """Score the answers by all rewards of the stage.

        Where it has judges, an answer's total is how likely it is better than another answer to its prompt.
        """
        scored = self.loop.score(rollout)
        self._spend("score")
        return scored

    def resample(self, rollout: Rollout, scored: Scored, rounds: int) -> tuple[Rollout, Scored, int]:
        """Exchange prompts whose answers all score the same for others, until there are none or the rounds are over.

        The others are those whose turn it would be in an update behind the stage's last. Third comes how many prompts
        were exchanged; what is returned is as large as what is given.
        """
        settings, exchanged = self.loop.settings, 0
        for turn in range(1, rounds + 1):
            told = [shaped(rollout, scored, settings), *scored.costs.values()]
            same = torch.stack([losses.equal_groups(one, settings.answers) for one in told]).all(dim=0)
            rows = same.repeat_interleave(settings.answers).nonzero().flatten().tolist()
            if not rows:
                break
            number, groups = self.number + turn * settings.updates, len(rows) // settings.answers
            asked = prompts_of_update(settings, self.loop.prompts, number, self.loop.seed)[:groups]
            others = self.sample(asked=asked)
            rollout, scored = rollout.with_rows(rows, others), scored.with_rows(rows, self.score(others))
            exchanged += groups
        return rollout, scored, exchanged

    def _spend(self, phase: str) -> None:
        """Count the time since the last phase to this one."""
        now = perf_counter()
        self._spent[phase] += now - self._last
        self._last = now

    def read(self, rollout: Rollout, scored: Scored) -> Seen:
        """Return what all models make of the answers, with scores as they are learnt from: what bounded costs take off
        is taken off.

        Raises StageError where nothing was learnt yet and the policy is not its start, or where there is a pull but no
        start.
        """
        models, settings, state = self.loop.models, self.loop.settings, self.loop.state
        if settings.kl.coef and not models.can_compare:
            raise StageError("a policy without adapters needs a model of its own as reference")
        seen = see(models, rollout, scored, settings, state.kl_coef)
        if seen.reference is not None and not state.done and not models.apart:
            layouts.check_start(models, seen.metrics["objective/kl_k2"], seen.metrics["length"])
        elsewhere = self.loop.answering is not None and self.loop.answering.elsewhere
        if rollout.logprobs and (elsewhere or settings.engine.ahead):
            seen = off_policy.corrected(seen, self.number - rollout.version, settings.engine)
        return charged(seen, scored.costs, state.multipliers)

    def done(self, metrics: Mapping[str, float]) -> None:
        """End the update: adapt the KL coefficient and the multipliers of costs, and log the metrics with learning
        rate, counts and speeds."""
        settings, state, told = self.loop.settings, self.loop.state, dict(metrics)
        learnt = perf_counter()
        state.done += 1
        if settings.kl.target and "objective/kl" in told:
            kl, target, horizon = told["objective/kl"], settings.kl.target, settings.kl.horizon
            state.kl_coef = losses.adapt_kl_coef(state.kl_coef, kl, target, horizon, settings.batch)
        ascend(state.multipliers, told)
        told |= {"lr": state.actor.learning_rate, "episode": state.done * settings.batch, "steps": state.actor.steps}
        phases = {
            "/sample": self._spent["sample"],
            "/score": self._spent["score"],
            "/learn": learnt - self._last,
            "": learnt - self._began,
        }
        told |= {f"tokens_per_second{name}": self._tokens / spent for name, spent in phases.items() if spent > 0}
        self.loop.log(state.done, told)


def open_loop(
    settings: SettingsT, stage: Stage, roles: Roles, around: Around, critic_rate: float | None = None
) -> tuple[Loop[SettingsT], Callable[[], Policy]]:
    """Open all that a stage names, at its newest checkpoint or at its start.

    Second comes what ends the stage once the updates are taken: it saves the policy, and tells what answers to
    held-out prompts were before and are now. Raises DataError where too many prompts are too long,
    StageError where all answers keep scoring the same.
    """
    parallel.check(stage)
    opened = open_roles(settings, stage, roles, around)

    def at_start() -> dict[str, Any] | None:
        found = opened.measure(stage.seed)
        return found and held_out.as_plain(found)

    loop, before = begin_loop(opened, stage, at_start, opened.heed, critic_rate)

    def finish() -> Policy:
        loop.state.way.go_back(stage, loop.state.actor, loop.state.done)
        return opened.finish(stage, loop.state.watch, held_out.from_plain(before) if before else None)

    return loop, finish


def begin_loop(
    opened: Opened[SettingsT],
    stage: Stage,
    measure: Callable[[], PlainT],
    heed: Heed | None = None,
    critic_rate: float | None = None,
) -> tuple[Loop[SettingsT], PlainT]:
    """Begin the updates on what was opened, at the stage's newest checkpoint or at its start.

    Second comes what `measure` found before the first update, a value that JSON can hold: it is kept with checkpoints,
    and not measured again. `heed` looks at the metrics of each update.
    """
    parallel.check(stage)
    settings = opened.settings
    stage.begin_part("", settings.updates)
    state = start(opened.models, settings, critic_rate, guessed=opened.guessed)
    state.way.check(stage)
    state.multipliers |= {cost.name: Multiplier.of(cost.constraint) for cost in opened.costs}

    def log(done: int, metrics: Mapping[str, float]) -> None:
        stage.log(done, settings.updates, metrics)
        if heed is not None:
            heed(stage, state.watch, done, metrics)
        state.way.taken(stage, state.actor, done, metrics)
        commit_or_leave(stage, done, partial(save, state, before), timer)

    def keep() -> None:
        if state.done:
            stage.commit(state.done, partial(save, state, before))

    latest, timer = stage.latest(), CommitTimer()
    kept: Any = load(state, latest) if latest else None
    room = max((len(prompt.ids) for prompt in opened.prompts), default=0) + longest_answer(settings)
    answering = answering_of(opened.models, opened.tokenizer, stage, room)  # a server starts while this measures
    try:
        before: PlainT = kept if latest else measure()
        answering.give(state.done)  # waits for the server, which no update should be charged for
    except BaseException:
        answering.close()
        raise
    score = partial(opened.score_groups, opened.prompts)
    ids = in_order_of([prompt.ids for prompt in opened.prompts], opened.prompts)
    loop = Loop(
        opened.models, state, ids, score, settings, stage.seed, log, opened.judged, answering=answering, keep=keep
    )
    return loop, before


def prompts_of_update(settings: SamplingSettings, prompts: int | Sequence[object], number: int, seed: int) -> list[int]:
    """Return which of these prompts, or of so many, are asked in an update."""
    asked = settings.batch // settings.answers
    rows = prompts if isinstance(prompts, int) else order_of(prompts)
    return in_turn(rows, number * asked, asked, seed)


def save(state: State, before: object, folder: Path) -> None:
    """Write a checkpoint: all that the updates to come and the last measurement need."""
    facts = {"done": state.done, "kl_coef": state.kl_coef, "watch": asdict(state.watch), "before": before}
    facts["way"] = state.way.facts()
    facts["multipliers"] = {name: [one.value, one.followed, one.scale] for name, one in state.multipliers.items()}
    if state.ahead:
        facts["ahead"] = [state.ahead.number, state.ahead.answers, asdict(state.ahead.wait())]
    save_learners(folder, state.learners, facts)


def load(state: State, folder: Path) -> Any:
    """Go on where a checkpoint was written, and return what was measured at the start."""
    facts = load_learners(folder, state.learners)
    state.done, state.kl_coef = facts["done"], facts["kl_coef"]
    state.watch = WarningSigns(**facts["watch"])
    state.way.restore(facts["way"])
    for name, numbers in facts["multipliers"].items():
        state.multipliers[name] = Multiplier(state.multipliers[name].constraint, *numbers)
    if ahead := facts.get("ahead"):
        number, answers, begun = ahead
        rollout = Rollout(**begun)
        state.ahead = Ahead(number, answers, lambda: rollout)
    return facts["before"]
