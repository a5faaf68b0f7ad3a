"""The text of a JSON file, value by value: a list of any length is read in the memory of its longest row."""

import codecs
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

from alignkit.errors import DataError

CHUNK = 1 << 20
"""Bytes that are read at a time; more where a single value is longer."""
DECODER = json.JSONDecoder()
WHITE = re.compile(r"[ \t\r\n]*")
NEAR_THE_END = 16
"""Signs before the end of what is read in which a fault may come of what is not read yet: part of a word or number."""

UNREADABLE = "not JSON that can be read (nested too deeply, or a number too long)"


def not_utf8(where: str, error: UnicodeDecodeError, before: int = 0) -> DataError:
    """Make the error for bytes that are no text; so many bytes stand before those that were decoded."""
    problem = f"not UTF-8 (byte {before + error.start} is 0x{error.object[error.start]:02x})"
    return DataError(problem, where, "save the file as UTF-8, for example with iconv")


class JsonText:
    """A file's text from where it has been read to. Faults are DataErrors with their line."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._line, self._bytes = "", 0, 1, 0
        self._ended = False

    def sign(self) -> str:
        """Return the next sign that is no white space, and stay before it; empty at the end of the file."""
        while True:
            white = WHITE.match(self._text, self._at)
            self._at = white.end() if white else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Go behind the sign that `sign` gave."""
        self._at += 1

    def value(self) -> Any:
        """Return the next value, and go behind it."""
        self.sign()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._may_go_on(error) and self._more():
                    continue
                raise self.fault(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise DataError(UNREADABLE, str(self._path), "correct the file") from error
            if end == len(self._text) and self._more():
                continue  # a number may go on
            self._at = end
            return value

    def fault(self, problem: str, at: int | None = None) -> DataError:
        """Make the error for what stands here."""
        line = self._line + self._text.count("\n", 0, self._at if at is None else at)
        hint = "name it .jsonl if each line is an object" if problem == "Extra data" else "correct the file"
        return DataError(f"not JSON ({problem})", f"{self._path}:{line}", hint)

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Return whether what is wrong may come of what is not read yet."""
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - NEAR_THE_END

    def _more(self) -> bool:
        """Read on, and forget what is done; False at the end of the file."""
        if self._ended:
            return False
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :], 0
        raw = self._file.read(max(CHUNK, len(self._text)))
        self._ended = not raw
        try:
            self._text += self._decode.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n") + error.object.count(b"\n", 0, error.start)
            raise not_utf8(f"{self._path}:{line}", error, self._bytes + len(raw) - len(error.object)) from error
        self._bytes += len(raw)
        return not self._ended
