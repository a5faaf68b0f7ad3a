"""Fingerprints: what a result's identity is made of, so that equal work is done once.

A stage's fingerprint is the hash of everything that can change its result: method, code, settings, seed and inputs,
each input by its own fingerprint. Versions of torch, transformers and trl are recorded, not hashed: an upgrade must
not throw away a week of work.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from alignkit.plugins import Origin

FORMAT = 1
"""Raised when the form of fingerprints or of stage folders changes."""

NUMERICS = 2
"""Raised when shared training code changes results (installed alignkit; a checkout counts by its sources)."""

SHARED_SOURCES = ("data/*.py", "contract/*.py", "training/*.py", "demo/*.py")
"""The files of alignkit, besides a method's own, that can change a result."""

PACKAGED = (".py", ".toml", ".json", ".jsonl", ".txt", ".jinja")
"""Endings of a package's files that can change a result: code, and texts that it may read."""


def digest(facts: object) -> str:
    """Hash a JSON value in canonical form."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def stage_seed(seed: int, stage: str) -> int:
    """Derive a stage's seed; neither method nor settings enter it, so variants see the same data order."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:4], "big")


def stage_fingerprint(
    method: str,
    code: str,
    settings: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, Sequence[str | None]],
    constraints: Sequence[tuple[str, Mapping[str, Any]]] = (),
) -> str | None:
    """Hash what makes a stage's result; None while an input's own fingerprint is unknown.

    Constraints stand in the order of the inputs that they bound, so that each belongs to its own.
    """
    if any(fingerprint is None for several in inputs.values() for fingerprint in several):
        return None
    facts = [FORMAT, method, code, settings, seed, sorted((r, list(f)) for r, f in inputs.items())]
    return digest([*facts, constraints] if constraints else facts)


def code_identity(origin: Origin, module: str) -> str:
    """Identify the code of a plugin: name and version if installed, the sources if a checkout or a file."""
    if origin.file:
        return f"file {_hash_sources((origin.file,))}"
    if origin.package == "alignkit":
        own = _module_file(module)
        return f"alignkit {_hash_sources((own, *_shared()))}" if _editable("alignkit") else _released(origin)
    return f"{origin.package} {_hash_sources(_package_files(module))}" if _editable(origin.package) else str(origin)


def _package_files(module: str) -> Sequence[Path]:
    """Return the files of the whole package that a module belongs to; of one that stands alone, itself."""
    top = sys.modules[module.partition(".")[0]]
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    found = (file for folder in folders for file in folder.rglob("*") if file.suffix in PACKAGED and file.is_file())
    return sorted(found) or [_module_file(module)]


def _released(origin: Origin) -> str:
    return f"{origin} numerics {NUMERICS}"


def _shared() -> Iterable[Path]:
    package = Path(__file__).parent.parent
    return sorted(path for pattern in SHARED_SOURCES for path in package.glob(pattern))


def _module_file(module: str) -> Path:
    return Path(sys.modules[module].__file__ or "")


def _hash_sources(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


@lru_cache
def _editable(package: str) -> bool:
    try:
        url = distribution(package).read_text("direct_url.json")
    except PackageNotFoundError:
        return False
    return bool(url and json.loads(url).get("dir_info", {}).get("editable"))
