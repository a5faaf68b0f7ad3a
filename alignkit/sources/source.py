"""A source: an artifact that a recipe starts from, with the options that say how it is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, SerializeAsAny, field_validator

from alignkit.contract.kinds import Artifact, FunctionReward, Judge, JudgeReward
from alignkit.contract.settings import Settings
from alignkit.data.records import OtherFormError, Part
from alignkit.errors import DataError, Problem


class RecordOptions(Settings):
    """How the rows of a source are read."""

    columns: Mapping[str, str] = {}
    """Our name of a column -> the name it has in the source."""
    format: str | None = None
    """The format of the rows, such as `sharegpt` or `alpaca`. Unset: told by their columns."""
    split: str | None = None
    """A split of a hub data set or a folder, with a slice where wanted: `train[:2000]`. Of files a slice: `[:2000]`."""
    config: str | None = None
    """The configuration of a hub data set, or of a clone of one, that has several."""
    rows: PositiveInt | None = None
    """Take so many rows from the start."""
    part: tuple[PositiveInt, PositiveInt] | None = None
    """`[2, 3]`: of the rows that are learnt take the second of three parts, told by the hashes of their prompts."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Of the pairs that are learnt exchange the two answers of this share: wrong labels, to see what they cost. The
    same pairs each time, and those of a smaller share among those of a larger one."""
    rated: tuple[float, float] | None = None
    """`[4, 5]`: of rows with a rating take those from the one to the other."""
    keep: tuple[str, ...] = ()
    """Further columns that stay with the row, for reward functions."""
    on_bad_rows: Literal["fail", "skip"] = "fail"
    """`fail`: a bad row is refused before anything is trained. `skip`: it is left out, counted and told."""
    max_bad: float = Field(default=0.001, ge=0, le=1)
    """Share of the rows that may be skipped."""
    held_out: float | str = Field(default=0.05)
    """Share of the prompts that are kept aside to measure on; or a file, or a split, of its own."""

    @field_validator("part")
    @classmethod
    def _there_is_such_a_part(cls, part: tuple[int, int] | None) -> tuple[int, int] | None:
        if part and part[0] > part[1]:
            raise ValueError(f"part {part[0]} of {part[1]} is none; write [1, {part[1]}] to [{part[1]}, {part[1]}]")
        return part

    @field_validator("rated")
    @classmethod
    def _goes_up(cls, rated: tuple[float, float] | None) -> tuple[float, float] | None:
        if rated and rated[0] > rated[1]:
            raise ValueError(f"no rating is from {rated[0]:g} to {rated[1]:g}; write the lower one first")
        return rated


SHOWN = 5
"""Bad rows that are told one by one."""


@dataclass
class BadRows:
    """The bad rows of a source: how many there are, and the first of them."""

    count: int = 0
    first: list[DataError] = field(default_factory=list)
    of_other_form: int = 0
    """Chats among plain text, or the other way round."""
    other_form: OtherFormError | None = None
    """The first of those."""

    def note(self, error: DataError, _: object = None) -> None:
        """Count one more, as `placed_rows` tells it."""
        self.count += 1
        if isinstance(error, OtherFormError):
            self.of_other_form += 1
            self.other_form = self.other_form or error
            if self.of_other_form > 1:
                return
        if len(self.first) < SHOWN:
            self.first.append(error)

    def refusal(self, part: Part, good: int, options: RecordOptions) -> DataError:
        """Return the error that lists the first bad rows of a source and counts them all."""
        problems = [self._told(error, good) for error in self.first]
        if self.count > 1:
            problems.append(self._share(part, good + self.count, options))
        return DataError.of(problems)

    def _told(self, error: DataError, good: int) -> Problem:
        problem = error.problems[0]
        if not isinstance(error, OtherFormError):
            return problem
        forms = {error.form: self.of_other_form, ("plain" if error.form == "chat" else "chat"): good}
        mixed = f"chats and plain text are mixed ({forms['chat']} chat, {forms['plain']} plain)"
        return Problem(f"{mixed}; this is the first {error.form} row", problem.where, problem.remedy)

    def _share(self, part: Part, total: int, options: RecordOptions) -> Problem:
        share = f"{self.count} of {total} rows are bad"
        if options.on_bad_rows == "skip":
            problem, remedy = f"{share}, more than max_bad {options.max_bad:g}", f"raise {part.key('max_bad')}"
        elif part.in_recipe:
            problem, remedy = share, f'{part.key("on_bad_rows")} = "skip" leaves them out and counts them'
        else:
            problem, remedy = share, "--fix NEW.jsonl writes the others to a new file"
        return Problem(problem, f"source {part.name!r}" if part.in_recipe else part.name, remedy)


class PolicyOptions(Settings):
    load: Literal["4bit", "8bit"] | None = None
    """Quantise the frozen weights while loading (needs bitsandbytes and a GPU)."""
    grow_embedding: bool = False
    """Give tokens that the tokenizer has and the model has not (tags of your own) rows in its embedding, which training
    then fills. They begin as the mean of the others."""
    chat_template: str | None = None
    """A file with the chat template (Jinja) that renders chats in place of the tokenizer's own, in all stages that come
    from this policy; it is saved with what they make."""


class RewardOptions(Settings):
    weight: float = 1.0
    """Its share where several rewards are added up; below zero it is a penalty."""
    label: str | None = None
    """The class of a text classifier whose logit is the score."""
    settings: Mapping[str, Any] = {}
    """Settings of a reward function."""


class RuleOptions(Settings):
    settings: Mapping[str, Any] = {}
    """Settings of the rule."""


class JudgeOptions(Settings):
    """Which judge, and what the source says to its scheme."""

    scheme: str
    rest: str
    given: SerializeAsAny[Settings]
    weight: float = 1.0
    """Its share, where it is a reward."""

    @property
    def address(self) -> str:
        return f"{self.scheme}:{self.rest}"


Options = RecordOptions | PolicyOptions | RewardOptions | JudgeOptions
How = Literal["files", "folder", "gguf", "builtin", "hub", "function", "judge"]


@dataclass(frozen=True)
class Source:
    """One source, resolved as far as that goes without fetching anything."""

    name: str
    kind: type[Artifact]
    word: str
    """The kind's word in the recipe, such as `demonstrations`."""
    address: str
    how: How
    options: Options
    fingerprint: str | None
    """None where the commit of a hub source is not known yet."""
    files: tuple[Path, ...] = ()
    held_out_files: tuple[Path, ...] = ()
    splits: tuple[str, ...] = ()
    """The splits of the folder that it reads one of."""
    held_out_split: str | None = None
    """The one of them, with a slice, that holds the held-out rows."""
    in_recipe: bool = True
    """A recipe names it; else it is files by themselves."""
    repository: str = ""
    """The hub's name of it."""
    commit: str = ""
    chat_template: str | None = None
    """What the file of that option holds."""

    @property
    def shown(self) -> str:
        """Its address as the recipe has it."""
        if not isinstance(self.options, JudgeOptions):
            return self.address
        return f"judge:{self.options.address}" if self.kind is JudgeReward else self.options.address

    def said(self, *, given: bool = False) -> dict[str, Any]:
        """Return its options as plain values, or only those that the recipe gives."""
        if not isinstance(self.options, JudgeOptions):
            return self.options.model_dump(mode="json", exclude_unset=given)
        weight = {} if self.options.weight == 1 else {"weight": self.options.weight}
        return weight | self.options.given.model_dump(mode="json", exclude_unset=given)

    @property
    def fetched(self) -> bool:
        """It must be put on this machine before a stage can start from it."""
        return self.how in ("builtin", "hub", "gguf")

    def artifact(self, place: Path | None = None) -> Artifact:
        """Make the typed input of it; `place` is the folder where a fetched source lies."""
        path = place or (self.files[0] if self.files else Path())
        facts = {"name": self.name, "fingerprint": self.fingerprint or "", "path": path, **self._facts(path)}
        return self.kind.model_validate(facts)

    def _facts(self, path: Path) -> dict[str, Any]:
        if isinstance(self.options, RecordOptions):
            return {"parts": tuple(self._parts(self.options, path))}
        if isinstance(self.options, PolicyOptions):
            options = self.options
            return {
                "load": options.load,
                "grow_embedding": options.grow_embedding,
                "chat_template": self.chat_template,
            }
        if isinstance(self.options, JudgeOptions):
            facts = {"address": self.options.address, "options": self.options.given.model_dump(mode="json")}
            if self.kind is not JudgeReward:
                return facts
            judge = Judge(name=self.name, fingerprint=self.fingerprint or "", path=path, **facts)
            return {"weight": self.options.weight, "judge": judge}
        if self.kind is FunctionReward:
            function = self.address.partition(":")[2]
            return {"weight": self.options.weight, "function": function, "settings": self.options.settings}
        return {"weight": self.options.weight, "label": self.options.label}

    def _parts(self, options: RecordOptions, place: Path) -> Iterator[Part]:
        """Yield which files are read how: one part, or two where the held-out rows have an address of their own."""
        whole = Part(
            name=self.name,
            paths=self.files or (place,),
            hub=f"{self.repository}:{options.config or ''}" if self.how == "hub" else None,
            columns=options.columns,
            format=options.format,
            split=options.split,
            rows=options.rows,
            part=options.part,
            flip=options.flip,
            rated=options.rated,
            keep=options.keep,
            skip=options.on_bad_rows == "skip",
            in_recipe=self.in_recipe,
            held_out=0.0 if isinstance(options.held_out, str) else options.held_out,
        )
        if self.how == "builtin":
            for side in ("train", "held_out"):
                yield whole.model_copy(update={"paths": (place / f"{self.word}-{side}.jsonl",), "side": side})
        elif isinstance(options.held_out, str):
            yield whole.model_copy(update={"side": "train"})
            split = options.held_out if whole.hub else self.held_out_split
            paths = whole.paths if whole.hub else self.held_out_files
            yield whole.model_copy(update={"split": split, "paths": paths, "side": "held_out", "rows": None})
        else:
            yield whole
