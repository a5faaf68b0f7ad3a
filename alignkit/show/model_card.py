"""The model card of a policy of a kept run: what it reached, what it was made from, and how it is made again."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkit.data.values import Form
from alignkit.show.verdict import verdict_on
from alignkit.store.rundir import SHORT
from alignkit.store.runs import KeptRun, KeptStage
from alignkit.text import plain

SUMS = "SHA256SUMS"
"""The file of hashes beside a card."""
UNKNOWN = "to be filled in"
HUB, BUILT_IN = "hf:", "builtin:"


@dataclass(frozen=True)
class CardSource:
    """A source as the card shows it."""

    name: str
    kind: str
    address: str
    revision: str
    rows: str
    held_out: str
    license: str


@dataclass(frozen=True)
class CardSubject:
    """What a card is written of."""

    run: KeptRun
    stage: KeptStage
    form: Form
    adapter: bool


def write_card(subject: CardSubject, folder: Path) -> None:
    """Write the model card as README.md, and the recipe beside it."""
    from jinja2 import Environment, PackageLoader

    run = subject.run
    environment = Environment(  # noqa: S701  # it makes Markdown
        loader=PackageLoader("alignkit", "show"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    stages, sources = lineage(run, subject.stage)
    measured = [*stages, *(one for one in run.stages if _measures(one, subject.stage))]
    names, verdict = [one.name for one in measured], verdict_on(run)
    last = [one.name for one in run.stages if one.wanted and one.makes == subject.stage.makes][-1]
    text = environment.get_template("model_card.md.jinja").render(
        front=_front(subject, sources),
        title=f"{run.recipe}: {subject.stage.name}",
        run=run,
        stage=subject.stage,
        made_on=f", {str(subject.stage.facts['ended'])[:10]}" if "ended" in subject.stage.facts else "",
        verdict=verdict,
        lead=verdict.lead if subject.stage.name == last else "",
        adapter=subject.adapter,
        chat=subject.form == "chat",
        figures={name: told for name, told in verdict.stages.items() if name in names},
        worse=[told for told in verdict.worse if told.partition(":")[0] in names],
        alarms=[alarm for alarm in verdict.alarms if alarm.stage in names],
        stages=stages,
        takes=_takes,
        changed=_changed,
        sources=[_source(run, name) for name in sources],
        sums=SUMS,
        commands=_commands(run),
        versions=", ".join(f"{name} {version}" for name, version in run.facts.get("versions", {}).items()),
        device=f" on {subject.stage.facts['device']}" if "device" in subject.stage.facts else "",
        recipe=run.recipe_text.rstrip(),
    )
    (folder / "README.md").write_text(plain(text), "utf-8")
    (folder / "recipe.toml").write_text(run.recipe_text, "utf-8")


def lineage(run: KeptRun, stage: KeptStage) -> tuple[list[KeptStage], list[str]]:
    """Return the stages that a stage stands on, itself last, and the names of the sources that they take."""
    by_name, wanted, taken = {one.name: one for one in run.stages}, {stage.name}, dict[str, None]()
    for one in reversed(run.stages):
        if one.name in wanted:
            wanted |= {name for names in one.inputs.values() for name in names if name in by_name}
    stages = [one for one in run.stages if one.name in wanted]
    for one in stages:
        taken |= dict.fromkeys(name for names in one.inputs.values() for name in names if name not in by_name)
    return stages, list(taken)


def _measures(one: KeptStage, stage: KeptStage) -> bool:
    return one.wanted and one.makes == "Scores" and any(stage.name in names for names in one.inputs.values())


def _front(subject: CardSubject, sources: Sequence[str]) -> str:
    """Return the card's front matter, as the hub reads it."""
    from huggingface_hub import ModelCardData

    facts = {name: subject.run.plan["sources"][name] for name in sources}
    hub = {name: _hub_name(str(one["address"])) for name, one in facts.items()}
    bases = [hub[name] for name, one in facts.items() if one["kind"] == "Policy" and hub[name]]
    data = [hub[name] for name, one in facts.items() if one["kind"] != "Policy" and hub[name]]
    return ModelCardData(
        base_model=bases[0] if bases else None,
        datasets=list(dict.fromkeys(filter(None, data))) or None,
        library_name="peft" if subject.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["alignkit", subject.stage.method],
    ).to_yaml()


def _hub_name(address: str) -> str | None:
    return address.removeprefix(HUB).partition("@")[0] if address.startswith(HUB) else None


def _takes(stage: KeptStage) -> str:
    return ", ".join(f"{role} = {' + '.join(names)}" for role, names in stage.inputs.items())


def _changed(stage: KeptStage) -> str:
    return _cell(", ".join(f"`{one.key} = {one.value}`" for one in stage.settings if one.changed) or "none")


def _source(run: KeptRun, name: str) -> CardSource:
    facts, audit = run.plan["sources"][name], run.audits.get(name, {})
    address = str(facts["address"])
    shown = Path(address).name if Path(address).is_absolute() else address
    return CardSource(
        name,
        facts["kind"],
        _cell(shown),
        str(facts["commit"] or facts["fingerprint"] or "unknown")[:SHORT],
        str(audit.get("rows", "")),
        str(audit.get("held_out", "")),
        "Apache-2.0" if address.startswith(BUILT_IN) else "" if address.startswith("function:") else UNKNOWN,
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _commands(run: KeptRun) -> list[str]:
    """Return what checks the run where it is kept, and what makes it anew anywhere."""
    changes = [word for key, value in run.overrides.items() if key != "seed" for word in _set(key, value)]
    seed = ["--seed", str(run.seed)] if "seed" in run.overrides else []
    return [
        f"alignkit verify {run.id}    # where the run is kept",
        f"alignkit reproduce {run.id}",
        f"{shlex.join(['alignkit', 'recipe', 'recipe.toml', *seed, *changes])}    # anywhere",
    ]


def _set(key: str, value: object) -> list[str]:
    plain_key = key.removeprefix("stage.").removeprefix("sources.")
    return ["--set", f"{plain_key}={value}"]
