"""An order: all that a worker needs to run a stage, in one JSON file; nothing is pickled between processes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from alignkit.contract.events import StageStarted
from alignkit.contract.kinds import Artifact, Records, kinds_by_name
from alignkit.contract.method import Input
from alignkit.contract.mix import Mix
from alignkit.errors import PluginError
from alignkit.run.machine import Machine
from alignkit.sources.fetch import Preparation
from alignkit.store.durable import write_text
from alignkit.store.rundir import ORDER


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Given(_Facts):
    """A typed input: the name of its kind, and its fields."""

    kind: str
    facts: Mapping[str, Any]


class Order(_Facts):
    """Run this method, in the folder where the order lies."""

    attempt: str
    """A random word: tells this attempt's files from those of an earlier one."""
    stage: str
    method: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, tuple[Given, ...]]
    """Role -> its artifacts; one, unless the method takes several."""
    made_from: Mapping[str, str] = {}
    """Stage -> the content of its artifact, for each stage among the inputs."""
    seed: int
    fingerprint: str
    again: bool = False
    """Run although it is finished."""
    offline: bool = False
    machine: Machine = Machine()
    """`sharded` is decided."""
    gpus: tuple[str, ...] = ()
    """Those that it has for itself, as CUDA_VISIBLE_DEVICES names them; where there are none it has all."""
    plugin_files: tuple[Path, ...] = ()
    prepare: tuple[Preparation, ...] = ()


def write_order(partial: Path, order: Order) -> None:
    """Put the order where the stage will work."""
    partial.mkdir(parents=True, exist_ok=True)
    write_text(partial / ORDER, order.model_dump_json(indent=2) + "\n")


def read_order(partial: Path) -> Order:
    return Order.model_validate_json((partial / ORDER).read_text("utf-8"))


def given(role: Input, artifacts: Sequence[Artifact], mix: Mix | None = None) -> tuple[Given, ...]:
    """Write down a role's artifacts; several sources of records become one, whose parts follow each other or are
    mixed."""
    joined = artifacts if role.several else _joined(artifacts)
    if mix:
        joined = [one.model_copy(update={"mix": mix}) for one in joined]
    return tuple(Given(kind=type(one).__name__, facts=json.loads(one.model_dump_json())) for one in joined)


def start_of(order: Order, final: Path, *, resumed: bool) -> StageStarted:
    """Return what observers are told where a stage begins that will lie in this folder."""
    return StageStarted(
        order.stage,
        order.method,
        str(final),
        resumed,
        order.settings,
        {role: tuple(str(one.facts["name"]) for one in several) for role, several in order.inputs.items()},
        order.seed,
        order.fingerprint,
    )


def _joined(artifacts: Sequence[Artifact]) -> Sequence[Artifact]:
    records = [one for one in artifacts if isinstance(one, Records)]
    if len(artifacts) < 2 or len(records) < len(artifacts):
        return artifacts
    fingerprint = hashlib.sha256("".join(one.fingerprint for one in records).encode()).hexdigest()
    parts = tuple(part for one in records for part in one.parts)
    name = "+".join(one.name for one in records)
    return [type(records[0])(name=name, fingerprint=fingerprint, path=records[0].path, parts=parts)]


def typed(role: Input, several: Sequence[Given]) -> Artifact | tuple[Artifact, ...] | None:
    """Make the input as the method takes it: an artifact, a tuple of them, or None where it was left out."""
    artifacts = tuple(map(artifact_of, several))
    if role.several:
        return artifacts
    return artifacts[0] if artifacts else None


def artifact_of(one: Given) -> Artifact:
    """Make an artifact of what an order says of it."""
    kind = kinds_by_name().get(one.kind)
    if kind is None:
        raise PluginError(f"no plugin that is loaded defines the kind {one.kind}")
    return kind.model_validate(one.facts)
