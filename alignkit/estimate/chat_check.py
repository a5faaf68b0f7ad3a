"""Every chat of a plan's sources, as the models of its stages will render it.

What a chat template refuses, or renders so that an answer cannot be found, is found before anything is trained. What
was found is kept by the content that it is of.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit.contract.kinds import Judge, JudgeReward, Policy, Prompts, Records, RewardModel
from alignkit.contract.needs import EvaluationNeeds
from alignkit.errors import DataError, Problem
from alignkit.estimate.desk import Desk
from alignkit.plan.plan import PlannedStage, policy_of
from alignkit.sources.source import BadRows, RecordOptions, Source
from alignkit.store import rundir
from alignkit.store.notes import note_path, read_note, write_note

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignkit.estimate.rendering import Rendering
    from alignkit.training.templates import Learn

VERSION = 2
"""Raised when what is looked at changes."""
GIVE = 'give the source of the policy another template: chat_template = "FILE"'


class Told(NamedTuple):
    """What is wrong with a stage's chats, and warnings about them."""

    problems: list[Problem]
    remarks: list[Problem]


@dataclass
class Chats:
    """Looks at the chats of one plan's stages; what was told of a source once is not told again."""

    desk: Desk
    _told: set[str] = field(default_factory=set)

    def look(self, stage: PlannedStage) -> Told:
        """Render all chats that a stage reads, by the template of each of its models.

        A method that runs none of our loops may read rows in its own way: of those, what is no prompt is told and not
        refused.
        """
        from alignkit.estimate.counting import learn_of

        told = Told([*self._new(list(self._judges(stage))), *self._two_forms(stage)], [])
        for name in self._sources(stage):
            for reader in self._readers(stage):
                if reader.reward and not issubclass(self.desk.plan.sources[name].kind, Prompts):
                    continue
                found = self._rendering(name, reader, learn_of(stage.needs))
                wrong = list(self._refused(name, found, reader))
                strict = stage.needs or issubclass(self.desk.plan.sources[name].kind, Prompts)
                where = f"stage {stage.name!r}"
                (told.problems if strict else told.remarks).extend(
                    Problem(one.problem, f"{where}, {one.where}", one.remedy) for one in self._new(wrong)
                )
                if not wrong:
                    told.remarks.extend(self._new(self._remarks(name, found, reader)))
        if isinstance(stage.needs, EvaluationNeeds) and not told.problems:
            told.problems.extend(self._left_out(stage, stage.needs))
        return told

    def _two_forms(self, stage: PlannedStage) -> Iterator[Problem]:
        """Refuse an input that joins sources of chats with such of plain text, as one source may not hold both."""
        for role, names in stage.inputs.items():
            known = [name for name in names if name in self.desk.audits]
            chats = [name for name in known if self.desk.audits[name].chats]
            texts = [name for name in known if not self.desk.audits[name].chats]
            if chats and texts:
                problem = f"{role} joins chats ({', '.join(chats)}) and plain text ({', '.join(texts)})"
                remedy = f'write all rows in one form, or take those of one: inputs.{role} = "{chats[0]}"'
                yield Problem(problem, f"stage {stage.name!r}", remedy)

    def _judges(self, stage: PlannedStage) -> Iterator[Problem]:
        """Refuse judges that are policies and whose template takes no question, or none after an answer."""
        from alignkit.training.templates import PROBED, rendered

        for name in self._named(stage):
            source = self.desk.plan.sources.get(name)
            if source is None or not issubclass(source.kind, Judge | JudgeReward) or source.how == "judge":
                continue
            tokenizer = self._tokenizer(source)
            try:
                for chat in (PROBED[:1], [*PROBED, *PROBED[:1]]):
                    rendered(tokenizer, chat, asking=True)
            except DataError as error:
                remedy = "take a judge whose template takes questions and answers in turn"
                yield Problem(error.problem, f"stage {stage.name!r}, source {name!r}", remedy)

    def _left_out(self, stage: PlannedStage, needs: EvaluationNeeds) -> Iterator[Problem]:
        """Refuse an evaluation that would leave out too many prompts, by the function that leaves them out."""
        from alignkit.estimate.counting import answer_tokens
        from alignkit.training.configs import open_config, positions_of
        from alignkit.training.encoding import AskedPrompt, asked_of_all, fitting_length, too_much_lost

        names = [name for name in self._named(stage) if name in self.desk.audits]
        prompts: list[Any] = [self.desk.open(self.desk.plan.sources[name]) for name in names]
        asked = []
        for reader in self._readers(stage):
            if reader.reward:
                continue
            model: Any = self.desk.open(reader.source)
            longest = fitting_length(positions_of(open_config(model.path)), needs.max_length)
            asked.append(AskedPrompt(reader.tokenizer, longest))
        held_out = chain.from_iterable(one.held_out() for one in prompts)
        _, lengths = asked_of_all(held_out, asked, needs.prompts, answer_tokens(needs))
        error = too_much_lost("prompts", lengths, needs.max_lost)
        if error and lengths.rows:
            yield Problem(error.problem, f"stage {stage.name!r}", error.remedy)

    def _new(self, problems: Iterator[Problem] | list[Problem]) -> list[Problem]:
        new = [one for one in problems if str(one) not in self._told]
        self._told.update(map(str, new))
        return new

    def _sources(self, stage: PlannedStage) -> list[str]:
        """Name the sources of chats that a stage reads."""
        return [name for name in self._named(stage) if name in self.desk.audits and self.desk.audits[name].chats]

    def _named(self, stage: PlannedStage) -> list[str]:
        return stage.taken

    def _readers(self, stage: PlannedStage) -> "list[_Reader]":
        """Return the tokenizers that a stage reads chats by: of its policies, and of the reward models that judge."""
        found: dict[str, _Reader] = {}
        for role, several in stage.inputs.items():
            for name in several:
                source = self._start(name)
                reward = RewardModel in stage.method.consumes[role].kinds or self._makes_rewards(name)
                if source and (reward or Policy in stage.method.consumes[role].kinds):
                    found.setdefault(source.name, _Reader(source, self._tokenizer(source), reward))
        return [one for one in found.values() if not (one.reward and one.plain)]

    def _makes_rewards(self, name: str) -> bool:
        made = self.desk.plan.sources[name].kind if name in self.desk.plan.sources else self.desk.plan.stage(name).made
        return issubclass(made, RewardModel)

    def _start(self, name: str) -> Source | None:
        """Follow a model back to the source that its tokenizer comes from."""
        if name in self.desk.plan.sources:
            source = self.desk.plan.sources[name]
            return source if issubclass(source.kind, Policy | RewardModel) else None
        stage = self.desk.plan.stage(name)
        return policy_of(self.desk.plan, stage) if issubclass(stage.made, Policy | RewardModel) else None

    def _tokenizer(self, source: Source) -> "PreTrainedTokenizerBase":
        from alignkit.training.tokenizers import open_tokenizer

        artifact: Any = self.desk.open(source)
        return open_tokenizer(artifact.path, source.chat_template)

    def _rendering(self, name: str, reader: "_Reader", learn: "Learn") -> "Rendering":
        """Render a source's chats, or give what was found before."""
        from alignkit.estimate.rendering import Rendering, render_all

        source = self.desk.plan.sources[name]
        seen = (source.fingerprint, source.kind.__name__, source.said(), reader.source.fingerprint, learn)
        note = note_path(rundir.cache_folder(self.desk.runs), "chats", VERSION, *seen)
        if facts := read_note(note):
            return Rendering(**facts)
        records = self.desk.open(source)
        assert isinstance(records, Records)
        found = render_all(records, reader.tokenizer, learn)
        if source.fingerprint and reader.source.fingerprint:
            write_note(note, asdict(found))
        return found

    def _refused(self, name: str, found: "Rendering", reader: "_Reader") -> Iterator[Problem]:
        """Yield what refuses a source: rows that the template refuses, unless so many may be left out."""
        options, audit = self.desk.plan.sources[name].options, self.desk.audits[name]
        assert isinstance(options, RecordOptions)
        total, bad = found.rows + audit.bad, found.refused + audit.bad
        if not found.refused or (options.on_bad_rows == "skip" and bad <= options.max_bad * total):
            return
        errors = [_for_reward(one, reader) for one in found.errors] if reader.reward else found.errors
        artifact: Any = self.desk.plan.sources[name].artifact()
        yield from BadRows(bad, list(errors)).refusal(artifact.parts[0], total - bad, options).problems

    def _remarks(self, name: str, found: "Rendering", reader: "_Reader") -> Iterator[Problem]:
        from alignkit.training.templates import learnt_heading

        template = f"the chat template of {reader.source.name!r}"
        where = f"source {name!r}"
        if found.refused:
            problem = f"{template} refuses {found.refused} of {found.rows} rows, which are left out, such as"
            yield Problem(f"{problem} {found.errors[0].where}: {found.errors[0].problem}", where, GIVE)
        if reader.reward:
            return
        if found.changed:
            problem = f"{template} renders {found.changed} answers otherwise than they stand, such as that of"
            remedy = f"see the rendered rows; if that is not meant, {GIVE}"
            yield Problem(f"{problem} {found.first_changed}", where, remedy)
        for role, turns in found.unshown.items():
            problem = f"{template} does not show {turns} turns of the role {role!r} as they stand, such as in"
            remedy = f"see the rendered rows; if that is not meant, {GIVE}"
            yield Problem(f"{problem} {found.first_unshown}", where, remedy)
        for key, turns in found.unread.items():
            yield Problem(f"{template} does not read {key}, which {turns} turns have", where, f"take it out, or {GIVE}")
        if reader.plain:
            problem = f"the tokenizer of {reader.source.name!r} has no chat template, so chats are written with plain"
            remedy = 'see the rendered rows; chat_template = "FILE" gives it one'
            yield Problem(f"{problem} headings", f"source {reader.source.name!r}", remedy)
        if heading := learnt_heading(reader.tokenizer):
            problem = f"{template} does not ask for an answer (add_generation_prompt), so its heading {heading!r} is"
            yield Problem(f"{problem} learnt as part of the answer", f"source {reader.source.name!r}", GIVE)


@dataclass(frozen=True)
class _Reader:
    """A tokenizer that reads chats, and where it comes from."""

    source: Source
    tokenizer: "PreTrainedTokenizerBase"
    reward: bool
    """It is that of a reward model, which reads prompts with answers that are not known yet."""

    @property
    def plain(self) -> bool:
        from alignkit.training.tokenizers import PLAIN_TEMPLATE

        return bool(self.tokenizer.chat_template == PLAIN_TEMPLATE)


def _for_reward(error: DataError, reader: _Reader) -> DataError:
    """Say whose template refuses a prompt: a reward model's own cannot be given by its source."""
    problem = f"{error.problem} (it is that of the reward model {reader.source.name!r})"
    return DataError(problem, error.where, "correct the row, or take a reward model whose template takes it")
