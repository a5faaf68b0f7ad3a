"""A file of answers: prompts answered batch by batch into JSON Lines, gone on with where an earlier attempt stopped.

A line is a demonstration (`prompt`, `completion`), with `finished`, `scores` where they are asked for, and `by`, which
says who gave the answer and how it was drawn.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alignkit.contract.kinds import Prompts
from alignkit.contract.reward_function import Answer
from alignkit.data.files import rows_of
from alignkit.data.records import Part, placed_rows
from alignkit.errors import DataError, RecipeError
from alignkit.sources.from_files import source_at
from alignkit.training.encoding import Prompt
from alignkit.training.speaking import Manner, Speaker
from alignkit.use.run_rewards import OpenReward, scored

ANSWERS_AT_ONCE = 256
"""Which are drawn from the same random numbers, and written together."""


@dataclass(frozen=True)
class AnswerFile:
    """What is asked, and how."""

    speaker: Speaker
    rewards: Sequence[OpenReward]
    manner: Manner
    each: int
    """Answers to each prompt."""
    by: str
    """Who answers."""

    @property
    def signature(self) -> str:
        """Who answers, and how: equal where lines may stand in one file."""
        manner, longest = self.manner, self.speaker.longest(self.manner)
        return f"{self.by} temperature={manner.temperature:g} max_new_tokens={longest} seed={manner.seed}"

    def write(self, file: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[int]:
        """Answer all rows into a file, and yield how many answers it has, first and after each batch.

        Raises DataError where a prompt cannot be asked, and RecipeError where the file holds other answers.
        """
        prompts = [self._asked(row, number) for number, row in enumerate(rows, start=1)]
        asked = [prompt for prompt in prompts for _ in range(self.each)]
        done = self._done(file, asked)
        yield done
        while done < len(asked):
            start = done - done % ANSWERS_AT_ONCE
            answers = self.speaker.answers(asked[start : start + ANSWERS_AT_ONCE], self.manner, start)
            lines = list(islice(self._lines(answers), done - start, None))
            with file.open("a", encoding="utf-8") as out:
                out.writelines(f"{line}\n" for line in lines)
            done += len(lines)
            yield done

    def _asked(self, row: Mapping[str, Any], number: int) -> Prompt:
        try:
            return self.speaker.asked(row, self.manner)
        except DataError as error:
            raise DataError(error.problem, f"prompt {number}", error.remedy) from error

    def _done(self, file: Path, asked: Sequence[Prompt]) -> int:
        """Count the answers that a file has; a last line that was cut off is taken away."""
        if not file.is_file():
            return 0
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        rows = whole.decode("utf-8").splitlines()
        remedy = "name another file, or remove this one"
        if len(rows) > len(asked):
            raise RecipeError(f"the file has {len(rows)} rows, and {len(asked)} are asked for", str(file), remedy)
        for number, (line, prompt) in enumerate(zip(rows, asked, strict=False), start=1):
            told = _object(line)
            if told.get("by") != self.signature or told.get("prompt") != prompt.row["prompt"]:
                problem = f"line {number} is no answer to the same prompt by {self.signature}"
                raise RecipeError(problem, str(file), remedy)
        if len(whole) < len(content):
            with file.open("r+b") as out:
                out.truncate(len(whole))
        return len(rows)

    def _lines(self, answers: Sequence[Answer]) -> Iterator[str]:
        scores = scored(self.rewards, answers)
        for name, values in scores.items():
            if isinstance(values, str):
                remedy = "give the prompts the columns that it looks at, or leave out --score"
                raise DataError(f"the reward {name} cannot score the answers ({values})", remedy=remedy)
        chat = self.speaker.form == "chat"
        for place, answer in enumerate(answers):
            row = {
                "prompt": answer.row["prompt"],
                "completion": [{"role": "assistant", "content": answer.text}] if chat else answer.text,
                **({"tools": answer.row["tools"]} if answer.row.get("tools") else {}),
                "finished": answer.finished,
                **({"scores": {name: values[place] for name, values in scores.items()}} if scores else {}),
                "by": self.signature,
            }
            yield json.dumps(row, ensure_ascii=False)


def read_prompts(what: str, keep: Collection[str] = ()) -> list[Mapping[str, Any]]:
    """Read the prompts of a file, a folder or a pattern, in any format of prompts, with those of the columns to `keep`
    that the first row has. Raises DataError."""
    source = source_at(what, "prompts")
    records = source.artifact()
    assert isinstance(records, Prompts)
    _, first = next(rows_of(source.files[0]))
    more = {"side": "train", "keep": tuple(column for column in keep if column in first)}
    parts: list[Part] = [part.model_copy(update=more) for part in records.parts]
    return [row for part in parts for _, row in placed_rows(part, "Prompts", Prompts.columns)]


def _object(line: str) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
