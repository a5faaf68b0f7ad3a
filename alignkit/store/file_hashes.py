"""Hashes of files that are remembered as long as nothing says that the file has changed."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignkit.store.durable import hash_file, write_text

TOO_YOUNG = 2_000_000_000
"""Nanoseconds since its last change in which a file may change again without its mtime telling."""


class FileHashes:
    """Hashes of files, remembered under path, size, mtime and inode, so that planning stays quick."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.known = _read_cache(cache)
        self.changed = False

    def of(self, file: Path) -> str:
        """Return the sha256 of a file's content."""
        stat = file.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        *known, content = self.known.get(str(file)) or [""]
        if known == state:
            return str(content)
        content = hash_file(file)
        if time.time_ns() - stat.st_mtime_ns > TOO_YOUNG:
            self.known[str(file)] = [*state, content]
            self.changed = True
        return content

    def save(self) -> None:
        """Write what was learnt, in one go; a cache that cannot be written is no error."""
        if not self.changed:
            return
        with suppress(OSError):
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.cache, json.dumps(self.known))


def _read_cache(cache: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(cache.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {file: facts for file, facts in known.items() if isinstance(facts, list)} if isinstance(known, dict) else {}
