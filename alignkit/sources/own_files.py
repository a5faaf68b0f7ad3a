"""Files as their owner names them on the command line: what each holds, and how a recipe says so."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.contract.kinds import SOURCE_KINDS, Records
from alignkit.data.files import rows_of
from alignkit.data.formats import TRANSCRIPTS
from alignkit.data.records import Part, format_of_part
from alignkit.errors import DataError, RecipeError
from alignkit.sources.address import is_hub_name
from alignkit.sources.from_files import ORDER, files_at, reads

Ask = Callable[[str, Sequence[str]], str]
"""Asks which of several kinds a file holds."""

CONTAINED: Mapping[str, tuple[str, ...]] = {
    "preferences": ("ratings", "prompts"),
    "ratings": ("demonstrations", "prompts", "text"),
    "demonstrations": ("prompts", "text"),
}
"""Kinds whose columns are a part of another one's: the larger one is meant."""

MEANINGS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "preferences": {
        "prompt": ("prompt", "question", "instruction", "input", "query"),
        "chosen": ("chosen", "preferred", "better", "good", "winner", "accepted"),
        "rejected": ("rejected", "dispreferred", "worse", "bad", "loser", "declined"),
    },
    "demonstrations": {
        "prompt": ("prompt", "question", "instruction", "input", "query", "request", "context"),
        "completion": ("completion", "answer", "output", "response", "reply", "target"),
    },
}
"""What columns are usually called that hold one of ours."""


@dataclass(frozen=True)
class OwnFile:
    """A file, a folder or a pattern with what it holds."""

    what: str
    """As its owner names it."""
    word: str
    """Of its kind."""
    files: tuple[Path, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    """What a source says besides its address: `columns` or `format`, where that is needed."""


def own_file(given: str, ask: Ask | None) -> OwnFile:
    """Recognise what a file holds, which may be said in front of it: `demonstrations:FILE`.

    Where several kinds fit, `ask` is asked. Raises RecipeError where nobody can be, and DataError where none fits.
    """
    word, colon, rest = given.partition(":")
    known = [name for name, kind in SOURCE_KINDS.items() if issubclass(kind, Records)]
    said, what = (word, rest) if colon and word in known else ("", given)
    files = files_at(what).files
    if not files:
        remedy = f'if it lies on the hub, write a source of it: "hf:{what}"' if is_hub_name(what) else "check its path"
        raise DataError("there is no such file", what, remedy)
    fitting = [said] if said else list(_fitting(files[0]))
    if len(fitting) > 1 and ask:
        fitting = [ask(what, fitting)]
    if len(fitting) > 1:
        remedy = f"say which: {' or '.join(f'{name}:{what}' for name in fitting)}"
        raise RecipeError(f"the file may hold {' or '.join(fitting)}", what, remedy)
    if fitting and (not said or reads(files[0], _kind(said))):
        return OwnFile(what, fitting[0], files, _format(files[0], fitting[0]))
    return _by_its_columns(what, files, said)


def _fitting(path: Path) -> Iterator[str]:
    """Yield the kinds that a file may be of, but those whose columns are a part of another one's."""
    fitting = [name for name in ORDER if reads(path, _kind(name))]
    inside = {smaller for name in fitting for smaller in CONTAINED.get(name, ())}
    yield from (name for name in fitting if name not in inside)


def _kind(word: str) -> type[Records]:
    kind = SOURCE_KINDS[word]
    assert issubclass(kind, Records)
    return kind


def _format(path: Path, word: str) -> dict[str, Any]:
    """Return the format that a source must name: transcripts are read as plain text unless it is said."""
    kind = _kind(word)
    found = format_of_part(Part(name=path.name, paths=(path,)), kind.__name__, kind.columns)
    transcripts = found is not None and TRANSCRIPTS in found.traits and found.name == "chosen-rejected"
    return {"format": "transcript"} if transcripts else {}


def _by_its_columns(what: str, files: tuple[Path, ...], said: str) -> OwnFile:
    """Take columns for ours by what they are called. Raise DataError where that is no use."""
    _, row = next(rows_of(files[0]))
    for word in [said] if said else list(MEANINGS):
        columns = _meant(list(row), MEANINGS.get(word, {}))
        if columns:
            return OwnFile(what, word, files, {"columns": columns})
    problem = f"the first row is in no format that is known; its columns are {', '.join(map(repr, row)) or 'none'}"
    remedy = "name them prompt and completion, or prompt, chosen and rejected"
    raise DataError(problem, what, remedy)


def _meant(columns: Sequence[str], meanings: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return our name of each column -> theirs, where just one of theirs has each meaning; else nothing."""
    found = {
        ours: [name for name in columns if set(re.split(r"[\W_]+", name.lower())) & set(words)]
        for ours, words in meanings.items()
    }
    return {ours: names[0] for ours, names in found.items()} if all(len(n) == 1 for n in found.values()) else {}
