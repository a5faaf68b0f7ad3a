"""A plan in words: what will run, from what, and why not; as a table for people and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignkit.contract.constraint import COSTS, Constraint
from alignkit.contract.needs import SamplingNeeds
from alignkit.plan.mixing import readings
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.plan.presets import preset_of
from alignkit.recipe.packaged import is_packaged
from alignkit.show.metrics import bounds_in_words
from alignkit.show.offered import in_toml, settings_in, settings_of
from alignkit.sources.audit import Audit
from alignkit.sources.source import RecordOptions, Source
from alignkit.store.rundir import SHORT
from alignkit.text import short, table


def heading(plan: Plan, base: Path) -> str:
    """Name the recipe, where it comes from (a file relative to `base`) and its seed."""
    place = "packaged" if is_packaged(plan.recipe.path) else short(plan.recipe.path, base)
    return f"{plan.recipe.name}  {place}  seed {plan.recipe.seed}"


def show_plan(plan: Plan, states: Mapping[str, str], remarks: Mapping[str, str], width: int | None) -> list[str]:
    """Return a plan's lines; `states` says what will become of each stage, and `remarks` what is odd about that."""
    sources = [_source_row(source) for source in plan.sources.values()]
    stages = [_stage_row(stage, states.get(stage.name, state_of(stage))) for stage in plan.stages]
    notes = [(stage.name, note) for stage in plan.stages for note in _notes(plan, stage)] + list(remarks.items())
    return [
        *table(sources, width, ("source", "kind", "from")),
        *([""] if sources else []),
        *table(stages, width, ("stage", "method", "state", "makes", "takes")),
        *([""] if notes else []),
        *table(notes, width),
    ]


def state_of(stage: PlannedStage) -> str:
    """Return what will become of a stage as far as its plan tells, without a look at what is finished."""
    if not stage.wanted:
        return "not needed"
    return "will run" if stage.fingerprint else "commit unknown, will run"


def _source_row(source: Source) -> tuple[str, str, str]:
    return source.name, source.kind.__name__, " ".join([source.shown, *_source_facts(source)])


def _source_facts(source: Source) -> Iterator[str]:
    if len(source.files) > 1:
        yield f"({len(source.files)} files)"
    if source.how == "hub":
        yield f"(commit {source.commit[:SHORT]})" if source.commit else "(commit unknown)"
    if given := source.said(given=True):
        yield _assignments(given)
    if isinstance(source.options, RecordOptions) and source.held_out_files:
        yield f"({len(source.held_out_files)} files held out)"


def _stage_row(stage: PlannedStage, state: str) -> tuple[str, ...]:
    if not stage.wanted:
        return stage.name, stage.method.name, state, "", ""
    return stage.name, stage.method.name, state, stage.made.__name__, _wires(stage.inputs)


def _wires(inputs: Mapping[str, tuple[str, ...]]) -> str:
    return " ".join(f"{role}={'+'.join(names)}" for role, names in inputs.items())


def _notes(plan: Plan, stage: PlannedStage) -> Iterator[str]:
    if not stage.wanted:
        return
    given, one = given_settings(stage.settings), plan.recipe.rounds.get(stage.name)
    if one:
        yield f"round: {one.number} of {one.of}"
    if given and one and one.number > 1 and _same_settings(stage, plan.stage(f"{one.stage}-1")):
        yield f"set: as {one.stage}-1"
    else:
        yield from _preset(plan, stage)
        if given:
            yield f"set: {_assignments(given, stage.method.name)}"
    if stage.mix:
        yield f"mix: {_assignments(stage.mix.model_dump(mode='json', exclude_defaults=True))}"
    if "seed" in plan.recipe.stages[stage.name]:
        yield f"seed: {stage.seed}"
    for cost, constraint in stage.constraints.items():
        yield f"constraint: mean {cost} {bounds_in_words(constraint.min, constraint.max)}"
    for result, bounds in stage.gates.items():
        yield f"gate: {result} {' and '.join(f'{word} {bound:g}' for word, bound in bounds.items())}"
    if stage.standing_by:
        yield f"standing by: {', '.join(stage.standing_by)}"


def _same_settings(stage: PlannedStage, other: PlannedStage) -> bool:
    return (stage.method.name, stage.settings) == (other.method.name, other.settings)


def _preset(plan: Plan, stage: PlannedStage) -> Iterator[str]:
    """Yield what a stage's preset sets, and what the recipe says in its place."""
    if paper := preset_of(plan.recipe, stage.name, stage.method):
        sets, values = flat(paper.settings), flat(stage.settings.model_dump(mode="json"))
        others = {key: values[key] for key in sets if key in values and values[key] != sets[key]}
        told = f"preset: {paper.name} sets {_assignments(paper.settings, stage.method.name)}"
        yield f"{told}; the recipe says {_assignments(others, stage.method.name)}" if others else told


def mixes_in_words(plan: Plan, audits: Mapping[str, Audit]) -> dict[str, str]:
    """Return of each wanted stage that mixes sources whose rows are known what it reads of them."""
    rows = {name: audit.rows for name, audit in audits.items()}
    stages = [stage for stage in plan.stages if stage.wanted]
    return {stage.name: words for stage in stages if (words := mix_in_words(stage, rows))}


def mix_in_words(stage: PlannedStage, rows: Mapping[str, int]) -> str:
    """Return what a stage reads of the sources that it mixes, where their rows are known; else nothing."""
    read = readings(stage, rows)
    does, what = ("asks", "prompts") if isinstance(stage.needs, SamplingNeeds) else ("reads", "rows")
    parts = [f"{one.rows:,} {what} of {name} ({one.epochs:.3g} epochs)" for name, one in read.items()]
    return f"{does} {_and(parts)}" if parts else ""


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def given_settings(settings: BaseModel) -> dict[str, Any]:
    """Return the settings that differ from their defaults, groups kept."""
    return settings.model_dump(mode="json", exclude_defaults=True)


def _assignments(given: Mapping[str, Any], prefix: str = "") -> str:
    return ", ".join(f"{key} = {in_toml(value)}" for key, value in flat(given, prefix).items())


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables into dotted keys."""
    rows: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}.{key}" if prefix else key
        rows |= flat(value, name) if isinstance(value, Mapping) and value else {name: value}
    return rows


def as_dict(plan: Plan, states: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a plan as plain JSON values; `states` as for `show_plan`."""
    return {
        "recipe": plan.recipe.name,
        "path": str(plan.recipe.path),
        "seed": plan.recipe.seed,
        "overrides": {".".join(path): value for path, value in plan.recipe.overrides.items()},
        "plugin_files": list(map(str, plan.plugin_files)),
        "sources": {source.name: _source_dict(source) for source in plan.sources.values()},
        "stages": {stage.name: _stage_dict(plan, stage, states or {}) for stage in plan.stages},
    }


def as_kept(plan: Plan) -> dict[str, Any]:
    """Return a plan as it is kept: with what its report shows and only plugins can tell."""
    facts = as_dict(plan)
    for name, source in plan.sources.items():
        facts["sources"][name]["shown"] = _source_row(source)[2]
    for stage in plan.stages:
        facts["stages"][stage.name] |= {"summary": stage.method.summary, "described": _described(stage)}
    return facts


def _described(stage: PlannedStage) -> list[dict[str, str]]:
    """Return each setting with its value, its default and its documentation."""
    values = flat(stage.settings.model_dump(mode="json"), stage.method.name)
    told = [asdict(setting) for setting in settings_of(stage.method) if setting.key in values]
    for cost, constraint in stage.constraints.items():
        values |= flat(constraint.model_dump(mode="json"), f"constraints.{cost}")
        told += [asdict(setting) for setting in settings_in(Constraint, f"constraints.{cost}.")]
    names = ("key", "default", "summary")
    return [{**{name: one[name] for name in names}, "value": in_toml(values[one["key"]])} for one in told]


def _source_dict(source: Source) -> dict[str, Any]:
    return {
        "kind": source.kind.__name__,
        "address": source.shown,
        "files": list(map(str, source.files)),
        "commit": source.commit or None,
        "options": source.said(),
        "fingerprint": source.fingerprint,
    }


def _stage_dict(plan: Plan, stage: PlannedStage, states: Mapping[str, str]) -> dict[str, Any]:
    named, one = plan.recipe.stages[stage.name].get("inputs", {}), plan.recipe.rounds.get(stage.name)
    return {
        **({"round": {"stage": one.stage, "number": one.number, "of": one.of}} if one else {}),
        "method": stage.method.name,
        "from": str(plan.plugins.origins[f"method:{stage.method.address}"]),
        "state": states.get(stage.name, state_of(stage)),
        "wanted": stage.wanted,
        "makes": stage.made.__name__,
        "inputs": {role: list(names) for role, names in stage.inputs.items()},
        "inferred": [role for role in stage.inputs if role not in (*named, COSTS)],
        "preset": paper.name if (paper := preset_of(plan.recipe, stage.name, stage.method)) else None,
        "settings": stage.settings.model_dump(mode="json"),
        **({"mix": stage.mix.model_dump(mode="json", exclude_defaults=True)} if stage.mix else {}),
        "standing_by": list(stage.standing_by),
        "constraints": {cost: constraint.model_dump(mode="json") for cost, constraint in stage.constraints.items()},
        "gates": {result: dict(bounds) for result, bounds in stage.gates.items()},
        "seed": stage.seed,
        "fingerprint": stage.fingerprint,
    }
