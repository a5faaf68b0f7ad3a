"""Where an adapter's full weights lie: told by its folder alone, the same for the plan and for whoever opens it."""

import json
from pathlib import Path
from typing import Any

ADAPTER = "adapter_config.json"
"""What PEFT writes beside an adapter's weights."""
BESIDE = "base_path.json"
"""Says where the base that an adapter names lay when it was saved, for an adapter that is moved alone. Earlier versions
wrote how it is seen from the adapter, and its path into PEFT's file."""


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).is_file()


def named_base(adapter: Path) -> tuple[str, str | None]:
    """Return the folder or hub name of an adapter's base, and its revision; ValueError where the file is no JSON."""
    facts = _object(adapter / ADAPTER)
    revision = facts.get("revision")
    return str(facts.get("base_model_name_or_path") or ""), str(revision) if revision else None


def base_folder(adapter: Path) -> Path | None:
    """Find the folder of the weights that an adapter belongs to; None where it is not on this machine.

    That is its own `base/`, else the folder that it names, as seen from it, else what the local cache holds under the
    hub name, else the one that lies where it lay when the adapter was saved. ValueError where a file is no JSON.
    """
    name, revision = named_base(adapter)
    near = [adapter / "base"] + ([adapter / name, Path(name)] if name else [])
    found = next((folder for folder in near if _holds_a_model(folder) and not _same(folder, adapter)), None)
    return found.resolve() if found else _cached(name, revision) or _beside(adapter, name)


def _beside(adapter: Path, name: str) -> Path | None:
    """Look where the base of this name lay when the adapter was saved; the name may have been corrected since."""
    kept = _object(adapter / BESIDE) if (adapter / BESIDE).is_file() else {}
    folder = adapter / str(kept.get("base"))
    same = kept.get("base_model_name_or_path") == name
    return folder.resolve() if same and _holds_a_model(folder) else None


def _holds_a_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("config.json", ADAPTER))


def _same(folder: Path, other: Path) -> bool:
    return folder.resolve() == other.resolve()


def _cached(name: str, revision: str | None) -> Path | None:
    """Look into the hub's local cache; nothing is fetched."""
    if not name:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        return None


def _object(file: Path) -> dict[str, Any]:
    read = json.loads(file.read_text("utf-8"))
    if not isinstance(read, dict):
        raise ValueError("not a JSON object")
    return read
