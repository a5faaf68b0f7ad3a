"""What is recorded of a finished stage besides its artifact: from what, with what and on what it was made."""

import os
import platform
import resource
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from alignkit.contract.events import plain
from alignkit.contract.kinds import Records
from alignkit.data.values import Form, form_of
from alignkit.plugins import Plugins
from alignkit.run.order import Given, Order, artifact_of
from alignkit.run.working_stage import WorkingStage

LIBRARIES = ("alignkit", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "safetensors")


def facts_of(order: Order, stage: WorkingStage, plugins: Plugins, began: datetime, before: int) -> dict[str, Any]:
    """Put together what `stage.json` records besides the artifact."""
    return {
        "stage": order.stage,
        "method": order.method,
        "from": str(plugins.origins[f"method:{order.method}"]),
        "fingerprint": order.fingerprint,
        "settings": order.settings,
        "inputs": {role: [_named(one.kind, one.facts) for one in several] for role, several in order.inputs.items()},
        "form": _form([one for several in order.inputs.values() for one in several]),
        "made_from": order.made_from,
        "seed": order.seed,
        "results": [plain(result) for result in stage.outcome],
        "resumed_from": stage.resumed_from,
        "told_before": stage.told_before,
        "seconds": round(stage.seconds, 3),
        "began": began.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "peak_memory": _peak_memory(before),
        "processes": order.machine.world,
        "sharded": order.machine.sharded,
        "device": _device(),
        "host": socket.gethostname(),
        "versions": versions(),
    }


def _named(kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    mix = {"mix": facts["mix"]} if facts.get("mix") else {}
    return {"kind": kind, "name": facts["name"], "fingerprint": facts["fingerprint"]} | mix


def _form(inputs: Sequence[Given]) -> Form | None:
    """Return whether the stage's rows are chats or plain text; None where it takes no rows."""
    records = [one for one in map(artifact_of, inputs) if isinstance(one, Records)]
    rows = (next(one.train(), None) or next(one.held_out(), None) for one in records)
    forms = {form_of(row) for row in rows if row is not None}
    return ("chat" if "chat" in forms else "plain") if forms else None


def memory_now() -> int:
    """Measure what this process holds of its own, in bytes: before a stage works, that is what libraries have made."""
    import psutil

    held = psutil.Process().memory_info()
    return int(held.rss - getattr(held, "shared", 0))


def _peak_memory(before: int) -> dict[str, int]:
    """Measure the most memory that this process held at once, in bytes; on the GPU too, where it used one.

    `libraries` is what of it is no stage's: what was held before, and the pages of libraries' files, which a forked
    process gets one after another as it touches them.
    """
    import psutil

    unit = 1 if sys.platform == "darwin" else 1024
    files = int(getattr(psutil.Process().memory_info(), "shared", 0))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = {"memory": most, "libraries": min(most, before + files)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    if torch is not None and torch.backends.mps.is_available():
        return "mps"
    return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
