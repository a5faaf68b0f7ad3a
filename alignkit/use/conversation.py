"""Talking to a policy, or to two side by side: a line is a prompt, a line that begins with a slash a command."""

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from alignkit.contract.reward_function import Answer
from alignkit.errors import AlignkitError
from alignkit.text import number, plain
from alignkit.training.speaking import Manner, Speaker
from alignkit.use.run_rewards import OpenReward, scored

HELP = """\
/again   answer the same prompt once more, with other random numbers
/save    append a preference of the two newest answers to {file}
/clear   begin a new conversation
/help    show this
/quit    leave, as the end of the input does"""


class AskedPolicy(NamedTuple):
    """One of those who are asked."""

    name: str
    speaker: Speaker


class GivenAnswer(NamedTuple):
    """An answer, and who gave it."""

    name: str
    answer: Answer


@dataclass
class Conversation:
    """What has been said, by whom, and what may be saved of it."""

    asked: Sequence[AskedPolicy]
    """One, or two side by side; the conversation goes on with the answers of the first."""
    rewards: Sequence[OpenReward]
    manner: Manner
    file: Path
    """Where preferences are appended."""
    turns: list[Mapping[str, Any]] = field(default_factory=list)
    """Before the newest prompt."""
    prompt: str | None = None
    answers: list[GivenAnswer] = field(default_factory=list)
    """The answers to the newest prompt."""
    count: int = 0
    """Answers asked for so far: no two are drawn with the same random numbers."""

    def hold(self) -> None:
        """Answer line after line until the input ends, or until `/quit`."""
        for line in lines():
            word = line.strip()
            if word == "/quit":
                return
            try:
                with interruptible():
                    self._heed(line, word)
            except KeyboardInterrupt:
                self._say("interrupted; /quit leaves")
            except AlignkitError as error:
                self._say(f"error: {error}{'; /clear begins a new conversation' if self.turns else ''}")

    def _heed(self, line: str, word: str) -> None:
        if not word:
            return
        if word == "/help":
            self._say(HELP.format(file=self.file))
        elif word == "/clear":
            self.turns, self.prompt, self.answers = [], None, []
        elif word == "/save":
            self._save()
        elif word == "/again":
            self._again()
        elif word.startswith("/"):
            self._say(f"there is no command {word}; /help lists them")
        else:
            self._ask(line)

    def _ask(self, line: str) -> None:
        if self.prompt is not None and self.answers:
            self.turns += [_turn("user", self.prompt), _turn("assistant", self.answers[-len(self.asked)].answer.text)]
        self.prompt, self.answers = line, []
        self._answer()

    def _again(self) -> None:
        if self.prompt is None:
            self._say("nothing has been asked yet")
        else:
            self._answer()

    def _row(self, speaker: Speaker) -> dict[str, Any]:
        """Return the prompt as it is asked: a policy that has learnt from chats is told what was said before."""
        if speaker.form == "chat":
            return {"prompt": [*self.turns, _turn("user", self.prompt or "")]}
        return {"prompt": self.prompt}

    def _answer(self) -> None:
        display = AnswerDisplay([one.name for one in self.asked])
        place, self.count = self.count, self.count + 1
        prompts = [one.speaker.asked(self._row(one.speaker), self.manner) for one in self.asked]
        with display:
            found = list[GivenAnswer]()
            for column, (one, prompt) in enumerate(zip(self.asked, prompts, strict=True)):
                answer = shown_to_its_end(display, column, one.speaker.stream(prompt, self.manner, place))
                found.append(GivenAnswer(one.name, answer))
                display.end(column, self._scores(answer))
        self.answers += found

    def _scores(self, answer: Answer) -> str:
        parts = scored(self.rewards, [answer])
        told = [f"{name} {value if isinstance(value, str) else number(value[0])}" for name, value in parts.items()]
        return ", ".join([*told, *([] if answer.finished else ["cut at its length limit"])])

    def _save(self) -> None:
        first, second = (one.answer.text for one in self.answers[-2:]) if len(self.answers) > 1 else ("", "")
        if len(self.answers) < 2:
            self._say("a preference needs two answers to one prompt: /again gives another one, --vs asks two policies")
        elif first.strip() == second.strip() or not (first.strip() and second.strip()):
            self._say("the two answers do not differ, or one is empty: nothing is learnt from that; /again")
        elif (better := self._better()) is not None:
            chosen, rejected = (first, second) if better == "1" else (second, first)
            sides = {"chosen": self._side(chosen), "rejected": self._side(rejected)}
            append_row(self.file, self._row(self.asked[0].speaker) | sides)
            self._say(f"saved to {self.file}")

    def _better(self) -> str | None:
        """Ask which of the two newest answers is better; None: neither."""
        names = [one.name for one in self.answers[-2:]]
        first, second = names if names[0] != names[1] else ("the earlier", "the later")
        reply = next(lines(f"which is better: 1 ({first}) or 2 ({second})? "), "").strip()
        if reply in ("1", "2"):
            return reply
        self._say("nothing is saved: 1 or 2 was expected")
        return None

    def _side(self, text: str) -> str | list[dict[str, str]]:
        return [_turn("assistant", text)] if self.asked[0].speaker.form == "chat" else text

    def _say(self, text: str) -> None:
        print(plain(text), file=sys.stderr, flush=True)


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def shown_to_its_end(display: "AnswerDisplay", column: int, stream: Any) -> Answer:
    """Show an answer as it comes, and return it."""
    while True:
        try:
            display.add(column, next(stream))
        except StopIteration as end:
            answer: Answer = end.value
            return answer


class AnswerDisplay:
    """Answers as they come: one streams, two stand side by side on a terminal and below each other elsewhere."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._texts, self._ends = names, [""] * len(names), [""] * len(names)
        self._beside = len(names) > 1 and sys.stdout.isatty()
        console = Console(highlight=False)
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="visible") if self._beside else None

    def __enter__(self) -> "AnswerDisplay":
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live:
            self._live.__exit__(*error)

    def add(self, column: int, piece: str) -> None:
        """Show one more piece of an answer."""
        safe = plain(piece.expandtabs(4)) if sys.stdout.isatty() else piece
        if self._live:
            self._texts[column] += safe
            self._live.update(self._table(), refresh=True)
            return
        if not self._texts[column] and len(self._names) > 1:
            print(f"{self._names[column]}:")
        self._texts[column] += safe
        print(safe, end="", flush=True)

    def end(self, column: int, told: str) -> None:
        """Show what is told of an answer that has come to its end."""
        self._ends[column] = plain(told)
        if self._live:
            self._live.update(self._table(), refresh=True)
        else:
            print(f"\n({plain(told)})" if told and len(self._names) > 1 else "", flush=True)

    def _table(self) -> Table:
        table = Table(box=None, expand=True, padding=(0, 2, 0, 0))
        for name in self._names:
            table.add_column(name, ratio=1)
        table.add_row(*map(Text, self._texts))
        table.add_row(*(Text(told, style="dim") for told in self._ends))
        return table


def lines(prompt: str = "") -> Iterator[str]:
    """Yield the lines of the input; on a terminal each is asked for."""
    alone = sys.stdin.isatty()
    if alone:
        import readline  # noqa: F401  # what it is imported for: lines can be edited, and earlier ones come back
    while True:
        try:
            yield input((prompt or "> ") if alone else "")
        except EOFError:
            return


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end what is done inside, and no more."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a file of JSON Lines, in a line of its own."""
    open_end = file.is_file() and file.stat().st_size and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as out:
        out.write(("\n" if open_end else "") + json.dumps(row, ensure_ascii=False) + "\n")
