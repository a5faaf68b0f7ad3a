"""What each stage of a plan will need on this machine, before anything is trained."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import psutil
from pydantic import ValidationError

from alignkit.contract.kinds import Demonstrations, Policy, Preferences, Prompts, Records, RewardModel, Text
from alignkit.contract.mix import Mix, counts
from alignkit.contract.needs import EvaluationNeeds, Needs, PairNeeds
from alignkit.contract.settings import Settings, merged
from alignkit.data.adapter_folder import is_adapter
from alignkit.errors import AlignkitError, DataError, Problem
from alignkit.estimate.answer_length import remarks_on_answers, settled
from alignkit.estimate.compatibility import check_layers, check_tokens, remarks_on, unscored_tokens
from alignkit.estimate.counting import (
    Lengths,
    answer_tokens,
    count_tokens,
    fate_of,
    learn_of,
    one_by_one,
    room as longest_row,
    takes_apart,
)
from alignkit.estimate.desk import Desk
from alignkit.estimate.formulas import Facts, Held, Job, Need, estimated
from alignkit.estimate.sizes import sizes_of
from alignkit.estimate.timing import gauge
from alignkit.plan.plan import Plan, PlannedStage, policies_of, policy_of, policy_roles
from alignkit.plan.repeated import REFERENCE
from alignkit.sources.source import Source
from alignkit.training import encoding
from alignkit.training.arithmetic import arithmetic, device
from alignkit.training.configs import open_config, positions_of
from alignkit.training.lengths import UNSET_ANSWER
from alignkit.training.mixed_rows import value_of
from alignkit.training.models import rows_of
from alignkit.training.room import AS_IT_IS, Arrangement
from alignkit.training.served_scores import ADAPTER, check_served, unserved
from alignkit.training.weight_files import root_of

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json")
"""Files that transformers writes beside a model's weights."""
RECORD = 8 * 1024
"""Bytes of a short stage's records, of configs and of what stands at the beginning of files of tensors."""
UNSET_LENGTH = 1024
"""Tokens, at most, where `max_length` says nothing."""
CHANGES: Sequence[Mapping[str, Any]] = (
    {"lora": {"rank": 16}},
    {"layout": "shared"},
    {"layout": "frozen"},
    {"trained_layers": 2},
    {"precision": "bf16"},
    {"batch": 0.5},
    {"minibatches": 2},
    {"max_length": 0.5},
    {"generation": {"max_new_tokens": 0.5}},
    {"prompts": 0.5},
)
"""What may be changed to save memory; a fraction is a share of what it was, 2 with `minibatches` twice as many."""


QUANTISED = {"4bit": 0.55, "8bit": 1.0}
"""Bytes of a weight, its scales included."""


@dataclass(frozen=True)
class Estimate:
    """What one stage will need."""

    stage: str
    method: str
    need: Need
    libraries: int
    """Bytes that the libraries take besides, of the same memory; 0 on a GPU."""

    @property
    def memory(self) -> float:
        return self.need.memory + self.libraries


class Helps(NamedTuple):
    """A setting that would save memory, as --set takes it, and the estimate with it."""

    setting: str
    memory: float


@dataclass
class Estimator:
    """Estimates stages of one plan."""

    desk: Desk
    how: Arrangement = AS_IT_IS
    """In which models learn."""
    served: bool = False
    """Servers score by reward models, which then take no memory of the stage."""

    def __post_init__(self) -> None:
        self._libraries = 0 if device().type == "cuda" else int(psutil.Process().memory_info().rss)
        self._configs: dict[str, Any] = {}
        self._facts: dict[tuple[str, str], Facts] = {}

    def estimates(self) -> Iterator[Estimate]:
        """Yield the estimates of all wanted stages of which anything is known."""
        for stage in self.plan.stages:
            if stage.wanted and (found := self.estimate(stage, stage.needs)):
                yield found

    def estimate(self, stage: PlannedStage, needs: Needs | None, parts: int = 1) -> Estimate | None:
        """Estimate a stage that needs this, in each of the processes that its weights are cut into parts for; None
        where its method does not say."""
        job = self.job(stage, settled(self.desk, stage, needs))
        if job is None:
            return None
        job = replace(job, parts=parts)
        return Estimate(stage.name, stage.method.name, estimated(job.needs, job), self._libraries)

    def job(self, stage: PlannedStage, needs: Needs | None) -> Job | None:
        """Put together what is known of a stage."""
        source = policy_of(self.plan, stage)
        if source is None or needs is None or (facts := self._facts_of(stage, needs)) is None:
            return None
        config = self._config(source.name)
        check_layers(int(config.get_text_config().num_hidden_layers), needs.upper_layers)
        sizes = sizes_of(config, needs.lora, needs.upper_layers, stage.method.produces is RewardModel)
        roles = [role for role in stage.inputs if Policy in stage.method.consumes[role].kinds]
        policies = [name for role in roles for name in stage.inputs[role]]
        on_the_way = isinstance(needs, EvaluationNeeds) and needs.on_the_way
        kept = sum(map(self._kept_on_the_way, policies[1:])) if on_the_way else 0
        beside = [] if self.served else [sizes_of(one, scores=True) for one in self._reward_configs(stage)]
        if teachers := policy_roles(stage)[1:]:
            beside += [sizes_of(self._config(one.name)) for one in policies_of(self.plan, stage, teachers)]
        read = [Held(one, trains=False, bytes=arithmetic("auto").itemsize) for one in beside]
        costs = gauge(config, needs.lora, needs.precision, compiles=self.how.compiles)
        whole, files = bool(needs.lora) and not self._base_lies_in_a_folder(stage), self._beside(source)
        quantised = QUANTISED.get(self.desk.open(source).load)
        apart = REFERENCE in stage.inputs
        return Job(needs, facts, sizes, costs, read, len(policies) + kept, whole, apart, files, quantised, how=self.how)

    def _kept_on_the_way(self, name: str) -> int:
        """Return how many policies the stage of this name keeps beside the last one."""
        needs = next((one.needs for one in self.plan.stages if one.name == name), None)
        return needs.snapshots if needs else 0

    @property
    def plan(self) -> Plan:
        return self.desk.plan

    def _base_lies_in_a_folder(self, stage: PlannedStage) -> bool:
        """Return whether a folder holds exactly the weights that a stage's policy begins with.

        It does not where an adapter is merged, by the stage, or where the embedding grows.
        """
        name = stage.inputs[policy_roles(stage)[0]][0]
        if name not in self.plan.sources:
            before = self.plan.stage(name)
            adapted = bool(before.needs and before.needs.lora)
            return not (adapted and self._base_lies_in_a_folder(before))
        policy = self.desk.open(self.plan.sources[name])
        in_files, once_opened = rows_of(policy)
        return not is_adapter(policy.path) and in_files == once_opened

    def _beside(self, source: Source) -> float:
        """Weigh the files that are saved beside a policy's weights: its tokenizer's, and its config."""
        policy = self.desk.open(source)
        folder = policy.path if (policy.path / TOKENIZER[0]).is_file() else root_of(policy.path)
        return float(RECORD + sum((folder / name).stat().st_size for name in TOKENIZER if (folder / name).is_file()))

    def remarks(self, stage: PlannedStage) -> list[Problem]:
        """Return warnings about a stage's models; raises what would end it."""
        told = list(remarks_on(self.desk, stage))
        told += remarks_on_answers(self.desk, stage)
        self._check_tokens(stage)
        self._check_order(stage)
        if self.served:
            self._check_rewards(stage)
        rows = self._rows_of(stage, stage.needs)
        of = self.plan.recipe.rounds.get(stage.name)
        told_before = of is not None and of.number > 1
        if stage.needs and rows and not told_before and rows[0] not in stage.taken:
            problem = f"the rows are not made yet; the estimate assumes one per row of {rows[0]!r}"
            told.append(Problem(problem, f"stage {stage.name!r}", "--smoke makes some, and measures"))
        return told

    def _check_rewards(self, stage: PlannedStage) -> None:
        """Refuse reward models that no server can hold."""
        for name in stage.taken:
            if name in self.plan.sources:
                if issubclass(self.plan.sources[name].kind, RewardModel):
                    check_served(self.desk.open(self.plan.sources[name]))
            elif issubclass((before := self.plan.stage(name)).made, RewardModel) and before.needs and before.needs.lora:
                raise unserved(name, *ADAPTER)

    def _check_order(self, stage: PlannedStage) -> None:
        """Refuse rows without the number that a stage's mix orders them by."""
        column = stage.mix.order if stage.mix else None
        for name in (name for name in stage.taken if column and name in self.desk.audits):
            for row in self.desk.open(self.plan.sources[name]).train():
                value_of(row, str(column))

    def _check_tokens(self, stage: PlannedStage) -> None:
        """Refuse rows with tokens that one of the stage's policies, or a reward model, has no weights for."""
        if stage.needs is None:
            return
        given, learn = stage.taken, learn_of(stage.needs)
        for source in [*self._odd_rewards(given), *policies_of(self.plan, stage)]:
            model = self.desk.open(source)
            for name in (name for name in given if name in self.desk.audits):
                rows = self.plan.sources[name]
                counted = count_tokens(self.desk, rows, source, learn)
                records = self.desk.open(rows)
                check_tokens(records, counted, model, learn)

    def _odd_rewards(self, names: Sequence[str]) -> Iterator[Source]:
        """Yield the reward models among these sources whose tokenizers have tokens that they have no weights for."""
        for source in (self.plan.sources[name] for name in names if name in self.plan.sources):
            if issubclass(source.kind, RewardModel):
                reward = self.desk.open(source)
                if unscored_tokens(reward):
                    yield source

    def helps(self, stage: PlannedStage) -> list[Helps]:
        """Return the settings that would save most memory, the best first."""
        now = self.estimate(stage, stage.needs)
        found = []
        for change in CHANGES:
            name, value, changed = _changed(stage.settings, change)
            try:
                after = changed and self.estimate(stage, stage.method.needs(changed))
            except AlignkitError:
                continue  # it does not fit the model or the rows
            if now and after and after.memory < now.memory * 0.95:
                found.append(Helps(f"{stage.name}.{stage.method.name}.{name}={value}", after.memory))
        return sorted(found, key=lambda one: one.memory)[:3]

    def _config(self, source: str) -> Any:
        if source not in self._configs:
            artifact = self.desk.open(self.plan.sources[source])
            self._configs[source] = open_config(artifact.path)
        return self._configs[source]

    def _reward_configs(self, stage: PlannedStage) -> Iterator[Any]:
        for name in dict.fromkeys(stage.taken):
            if name in self.plan.sources:
                if issubclass(self.plan.sources[name].kind, RewardModel):
                    yield self._config(name)
            elif issubclass(self.plan.stage(name).made, RewardModel):
                source = policy_of(self.plan, self.plan.stage(name))
                if source:
                    yield self._config(source.name)

    def _facts_of(self, stage: PlannedStage, needs: Needs) -> Facts | None:
        source, rows = policy_of(self.plan, stage), self._rows_of(stage, needs)
        if source is None or rows is None:
            return None
        name, new = rows
        found = {one: self._counted(one, source.name, needs, new) for one in self._beside_each_other(stage, name)}
        mix = stage.mix if name in stage.taken else None
        facts, kind = joined(found, mix), self.plan.sources[name].kind
        if takes_apart(needs, kind):
            return facts._replace(rows=2 * facts.rows, held_out=2 * facts.held_out)
        if isinstance(needs, PairNeeds) and needs.gathered:
            return gathered(facts, name, self.desk.open(self.plan.sources[name]))
        if not issubclass(kind, Prompts):
            return facts
        answer = min(self._usual_answer(source.name) or new, new)
        return facts._replace(answer=answer, longest=facts.longest + new)

    def _counted(self, name: str, policy: str, needs: Needs, new: int) -> Facts:
        key = (name, f"{policy} {needs}")
        if key not in self._facts:
            self._facts[key] = self._count(name, policy, needs, new)
        return self._facts[key]

    def _beside_each_other(self, stage: PlannedStage, name: str) -> list[str]:
        """Name the sources that a stage takes in the role of one of them; that one alone where it makes rows of it."""
        several = next((names for names in stage.inputs.values() if name in names), (name,))
        return [one for one in several if one in self.desk.audits]

    def _rows_of(self, stage: PlannedStage, needs: Needs | None) -> tuple[str, int] | None:
        """Name the source of a stage's rows, and how many tokens its prompts are answered with.

        Of rows that an earlier stage makes, it is that of what they are made of.
        """
        if known := next((name for name in stage.taken if name in self.desk.audits), None):
            return known, answer_tokens(needs) or UNSET_ANSWER
        made = (self.plan.stage(name) for name in stage.taken if name not in self.plan.sources)
        makers = [one for one in made if issubclass(one.made, Records)]
        return self._rows_of(makers[0], makers[0].needs) if makers else None

    def _count(self, name: str, policy: str, needs: Needs, new: int) -> Facts:
        source, audit = self.plan.sources[name], self.desk.audits[name]
        counted = count_tokens(self.desk, source, self.plan.sources[policy], needs.learn)
        fits, rows = encoding.fitting_length(positions_of(self._config(policy)), needs.max_length), counted.rows
        assert issubclass(source.kind, Records)
        if issubclass(source.kind, Text):
            measured = math.ceil(needs.measured / counted.step)
            sides = (counted.train, counted.held_out[:measured])
            tokens, aside = (counted.step * sum(row.tokens for row in side) for side in sides)
            size = min(fits, tokens or 1)
            return Facts(math.ceil(tokens / size), math.ceil(aside / size), 0.0, float(size), size)
        if not rows:
            raise DataError("the chat template refuses all rows", f"source {name!r}", "correct them")
        room = longest_row(source.kind, fits, new)
        evaluates = isinstance(needs, EvaluationNeeds)  # what that leaves out, `Chats.look` has counted
        read = one_by_one(needs, source.kind, counted.held_out if evaluates else counted.train)
        allowed = 1.0 if evaluates else needs.max_lost
        lost = check_lost(name, source.kind, read or rows, room, allowed)
        longest = max(1, min(room, max(row.longest for row in rows)))
        prompt, answer = means(rows)
        if issubclass(source.kind, Demonstrations):  # they lose their end
            whole = fmean(min(row.longest, room) for row in rows)
            return Facts(audit.rows, audit.held_out, min(prompt, whole), max(0.0, whole - prompt), longest)
        prompt, answer = means([row for row in rows if row.longest <= room] or rows)
        kept, aside = (math.ceil(side * (1 - lost)) for side in (audit.rows, audit.held_out))
        return Facts(kept, aside, prompt, answer, longest)

    def _usual_answer(self, policy: str) -> float | None:
        """Return the mean length of the answers of the recipe, which a policy taught by them will come near to."""
        for name in self.desk.audits:
            if issubclass(self.plan.sources[name].kind, Demonstrations | Preferences):
                with suppress(DataError):  # told where a stage reads these rows
                    return self._count(name, policy, Needs(), 0).answer
        return None


def joined(facts: Mapping[str, Facts], mix: Mix | None) -> Facts:
    """Return what is known of the rows of several sources together, as an epoch of their mix reads them."""
    read = {name: one.rows for name, one in facts.items()}
    read = counts(mix, read) if mix else read
    total = max(1, sum(read.values()))
    prompt, answer = (
        sum(read[name] * getattr(one, side) for name, one in facts.items()) / total for side in ("prompt", "answer")
    )
    held_out, longest = sum(one.held_out for one in facts.values()), max(one.longest for one in facts.values())
    return Facts(sum(read.values()), held_out, prompt, answer, longest)


def gathered(facts: Facts, name: str, records: Records) -> Facts:
    """Return what is known of rows that are all answers to a prompt, from what is known of single answers.

    Raise DataError where no prompt has two.
    """
    sides = (Counter(json.dumps(row["prompt"]) for row in side) for side in (records.train(), records.held_out()))
    train, held_out = ([answers for answers in side.values() if answers > 1] for side in sides)
    if not train:
        raise DataError("no two rows have the same prompt", f"source {name!r}", "give several answers to each prompt")
    return facts._replace(rows=len(train), held_out=len(held_out), answer=fmean(train) * facts.answer)


def check_lost(name: str, kind: type[Records], rows: Sequence[Lengths], room: int, allowed: float) -> float:
    """Return the share of the rows that are cut or left out; raises DataError where that is too much, or all."""
    fate = fate_of(kind, rows, room)
    lost = fate.over / len(rows)
    if lost > allowed or fate.left_out == len(rows):
        problem = f"{lost:.0%} of {len(rows)} rows are longer than {max(room, 0)} tokens"
        remedy = f"raise max_length, shorten them, or raise max_lost ({allowed:g})"
        raise DataError(problem, f"source {name!r}", remedy)
    return lost


def means(counted: Sequence[Lengths]) -> tuple[float, float]:
    """Return the mean lengths of prompts and of answers."""
    return fmean(row.prompt for row in counted), fmean(row.answer for row in counted)


def _changed(settings: Settings, change: Mapping[str, Any]) -> tuple[str, object, Settings | None]:
    """Make settings with one change; None where they have no such setting or it already is so."""
    said: Any = settings.model_dump(mode="json")
    ((path, value),) = change.items()
    now = said.get(path, ...)
    if isinstance(value, dict) and path != "lora" and now is not ...:
        ((inner, value),) = value.items()
        now, path = now[inner], f"{path}.{inner}"
    if path == "max_length" and now is None:
        now = UNSET_LENGTH
    if now is ... or (isinstance(value, float) and not now):
        return path, None, None
    if isinstance(value, float):
        value = max(1, int(now * value))
    elif path == "minibatches":
        value = now * value
    wanted: Any = value
    for part in reversed(path.split(".")):
        wanted = {part: wanted}
    try:
        changed = type(settings).model_validate(merged(said, wanted))
    except ValidationError:
        return path, None, None
    shown = "'{}'" if path == "lora" else value
    return path, shown, changed if changed != settings else None
