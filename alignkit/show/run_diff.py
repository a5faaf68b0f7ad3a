"""Two kept runs side by side: what was asked otherwise, and what came of it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from alignkit.show.by_round import renamed
from alignkit.show.kept_runs import source_row
from alignkit.store.rundir import SHORT
from alignkit.store.runs import KeptRun, KeptSetting, KeptStage
from alignkit.text import number, table


class Circumstance(NamedTuple):
    """Something that was otherwise around the stages: the seed, a version, the machine."""

    name: str
    a: str
    b: str


class StagePair(NamedTuple):
    """A stage by its name; empty where a run has none, or did not need it."""

    stage: str
    a: str
    b: str
    """The methods."""
    same: bool
    """Both runs have the same result of it."""


class SettingPair(NamedTuple):
    """A setting of a stage that was otherwise; empty where the method of one has none of that name."""

    stage: str
    setting: str
    a: str
    b: str


class SourcePair(NamedTuple):
    """A source by its name, with its rows and its fingerprint."""

    source: str
    rows_a: str
    rows_b: str
    a: str
    b: str
    same: bool


class FigurePair(NamedTuple):
    """A result of a stage; None where a run has none of that name."""

    stage: str
    name: str
    a: float | None
    b: float | None

    @property
    def difference(self) -> float | None:
        """By how much that of B is larger."""
        return None if self.a is None or self.b is None else self.b - self.a


class RunDiff(NamedTuple):
    """Two runs and what is otherwise between them."""

    a: KeptRun
    b: KeptRun
    circumstances: Sequence[Circumstance]
    stages: Sequence[StagePair]
    settings: Sequence[SettingPair]
    sources: Sequence[SourcePair]
    figures: Sequence[FigurePair]


def diff_runs(a: KeptRun, b: KeptRun) -> RunDiff:
    """Compare two runs, stage by stage of the same name; of a stage that only one of them repeats, its last round."""
    meant = _last_rounds(a, b), _last_rounds(b, a)
    ours, theirs = (
        {called.get(stage.name, stage.name): stage for stage in run.stages if stage.wanted}
        for run, called in zip((a, b), meant, strict=True)
    )
    both = [(name, ours[name], theirs[name]) for name in ours if name in theirs]
    names = dict.fromkeys(chain(ours, theirs))
    return RunDiff(
        a,
        b,
        [*_circumstances(a, b), *_rounds(*meant)],
        [_stages(name, ours.get(name), theirs.get(name)) for name in names],
        [pair for name, stage, other in both for pair in _settings(name, stage, other)],
        list(_sources(a, b)),
        [pair for name in names for pair in _figures(name, (ours.get(name), theirs.get(name)), meant)],
    )


def _last_rounds(run: KeptRun, other: KeptRun) -> dict[str, str]:
    """Return the last rounds of stages that the other run has without rounds, with what these are called there."""
    alone = {stage.name for stage in other.stages}
    found = {run.last_round(one.round.stage): one.round.stage for one in run.stages if one.round}
    return {last: stage for last, stage in found.items() if stage in alone}


def _rounds(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[Circumstance]:
    yield from (Circumstance(f"stage {stage}", last, stage) for last, stage in ours.items())
    yield from (Circumstance(f"stage {stage}", stage, last) for last, stage in theirs.items())


def _circumstances(a: KeptRun, b: KeptRun) -> Iterator[Circumstance]:
    told = [{"recipe": run.recipe, "state": run.state, "seed": str(run.seed), **_surroundings(run)} for run in (a, b)]
    for name in dict.fromkeys(chain(*told)):
        one, other = (facts.get(name, "") for facts in told)
        if one != other:
            yield Circumstance(name, one, other)


def _surroundings(run: KeptRun) -> dict[str, str]:
    found = {**run.facts.get("machine", {}), **run.facts.get("versions", {})}
    return {name: str(value) for name, value in found.items()}


def _stages(name: str, one: KeptStage | None, other: KeptStage | None) -> StagePair:
    made = [stage.noted.get("content") for stage in (one, other) if stage]
    same = len(made) == 2 and made[0] is not None and made[0] == made[1]
    return StagePair(name, one.method if one else "", other.method if other else "", same)


def _settings(stage: str, one: KeptStage, other: KeptStage) -> Iterator[SettingPair]:
    """Yield the settings that are otherwise. What only one of two methods has is told where it is not its default."""
    ours, theirs = ({_name(setting): setting for setting in stage.settings} for stage in (one, other))
    if one.seed != other.seed:
        yield SettingPair(stage, "seed", str(one.seed), str(other.seed))
    for name in dict.fromkeys(chain(ours, theirs)):
        a, b = ours.get(name), theirs.get(name)
        if (a and b and a.value != b.value) or ((a is None or b is None) and any(x.changed for x in (a, b) if x)):
            yield SettingPair(stage, name, a.value if a else "", b.value if b else "")


def _name(setting: KeptSetting) -> str:
    """Return what a setting is called below its method, whichever that is."""
    return setting.key.partition(".")[2]


def _sources(a: KeptRun, b: KeptRun) -> Iterator[SourcePair]:
    ours, theirs = ({source.name: source.fingerprint for source in run.sources} for run in (a, b))
    for name in dict.fromkeys(chain(ours, theirs)):
        rows_a, rows_b = (_rows(run, name) if name in known else "" for run, known in ((a, ours), (b, theirs)))
        one, other = ours.get(name), theirs.get(name)
        yield SourcePair(
            name, rows_a, rows_b, (one or "")[:SHORT], (other or "")[:SHORT], one is not None and one == other
        )


def _rows(run: KeptRun, source: str) -> str:
    _, rows, held_out, *_ = source_row(run, source)
    return f"{rows} + {held_out}" if rows else "-"


def _figures(
    name: str, stages: tuple[KeptStage | None, KeptStage | None], meant: tuple[Mapping[str, str], Mapping[str, str]]
) -> Iterator[FigurePair]:
    ours, theirs = (
        {renamed(result.name, called): result.after for result in stage.results} if stage else {}
        for stage, called in zip(stages, meant, strict=True)
    )
    for figure in dict.fromkeys(chain(ours, theirs)):
        yield FigurePair(name, figure, ours.get(figure), theirs.get(figure))


def show_diff(found: RunDiff, width: int | None) -> list[str]:
    """Return the lines that tell what is otherwise; what is the same is told in short."""
    same = {pair.stage for pair in found.stages if pair.same}
    figures = [
        (pair.stage, pair.name, number(pair.a), number(pair.b), _signed(pair.difference))
        for pair in found.figures
        if pair.stage not in same
    ]
    stages = [(pair.stage, pair.a or "-", pair.b or "-", "the same" if pair.same else "") for pair in found.stages]
    settings = [(pair.stage, pair.setting, pair.a or "none", pair.b or "none") for pair in found.settings]
    sources = [
        (pair.source, pair.rows_a, pair.rows_b, pair.a, "the same" if pair.same else pair.b) for pair in found.sources
    ]
    blocks = [
        table([("A", found.a.id), ("B", found.b.id)], width),
        table(found.circumstances, width, ("", "A", "B")),
        table(stages, width, ("stage", "method of A", "method of B", "result")),
        table(settings, width, ("stage", "setting", "A", "B")),
        table(sources, width, ("source", "rows of A", "rows of B", "fingerprint of A", "fingerprint of B")),
        table(figures, width, ("stage", "figure", "A", "B", "B - A")),
    ]
    return [line for block in blocks if block for line in (*block, "")][:-1]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{'+' if value > 0 else ''}{number(value)}"


def as_dict(found: RunDiff) -> dict[str, Any]:
    """Return it as plain JSON values."""
    lists = ("circumstances", "stages", "settings", "sources")
    return {
        "a": found.a.id,
        "b": found.b.id,
        **{name: [pair._asdict() for pair in getattr(found, name)] for name in lists},
        "figures": [{**pair._asdict(), "difference": pair.difference} for pair in found.figures],
    }
