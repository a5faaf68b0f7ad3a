"""Judges behind any endpoint that speaks as OpenAI's chat completions do: a service, or a server of one's own.

1. Where the endpoint tells the probabilities of tokens, a verdict is soft; else the words of the reply are read.
2. A fault is not an opinion: whatever goes wrong on the way is asked again, with growing pauses, until patience ends.
3. What was answered is in a journal under `runs/cache`, by all that was sent: nothing is paid for twice. A kill costs
   the requests in flight, at most.
4. The key is read from the named environment variable when it is needed, and stands in no file and no message.
"""

import hashlib
import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from alignkit import Answer, Judge, JudgeClient, JudgeError, Question, RecipeError, Settings, Verdict, judge_scheme
from alignkit.http import FaultError, RefusedError, make_client, patiently, post
from alignkit_rlaif import wording
from alignkit_rlaif.replies import Replies, Spent

TOP = 20
"""Tokens whose probability is asked for; no endpoint tells more."""


class Limits(Settings):
    """What an endpoint may cost, and how it is asked; none of this changes a verdict."""

    concurrency: PositiveInt = 8
    """Requests in flight at once."""
    timeout: PositiveFloat = 60.0
    """Seconds in which one request must be answered."""
    patience: PositiveFloat = 600.0
    """Seconds in which a question is asked again and again before the stage gives up."""
    pause: PositiveFloat = 0.5
    """Seconds before the second attempt; each further pause is twice as long, up to a minute."""
    requests: PositiveInt | None = None
    """Stop after so many requests of this source, those that failed and those of earlier attempts included."""
    tokens: PositiveInt | None = None
    """Stop after so many tokens of this source, as the endpoint counts them, those of earlier attempts included."""


class EndpointSettings(Settings):
    """What a source says of `openai:` judges."""

    url: str
    """Where it answers, up to `/v1`: https://api.openai.com/v1, or http://localhost:8000/v1."""
    key_env: str | None = None
    """The environment variable that holds the key."""
    logprobs: bool = True
    """Ask for the probabilities of tokens; false where the endpoint refuses that."""
    reply_tokens: PositiveInt = 8
    """Length of a verdict; models that think first need some thousand."""
    text_tokens: PositiveInt = 512
    """Length of a critique or a revision."""
    temperature: NonNegativeFloat = 0.0
    """How freely it answers."""
    principles: tuple[str, ...] = ()
    """By what it rates, one rating for each; the mean counts."""
    limits: Limits = Limits()
    """What it may cost."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address that begins with http:// or https://")
        if parts.username or parts.password:
            raise ValueError("must hold no name and no password: name the variable of a key in key_env")
        return url.rstrip("/")


@judge_scheme("openai", free=("key_env", "limits"))
def openai(judge: Judge, settings: EndpointSettings, cache: Path | None) -> JudgeClient:
    """Ask an endpoint that speaks as OpenAI's chat completions do."""
    client = Client(judge, settings, cache)

    def compare(questions: Sequence[Question]) -> list[Verdict]:
        replies = client.ask([client.short(wording.comparing(question)) for question in questions])
        return [wording.verdict_of(reply["weights"], reply["text"]) for reply in replies]

    def rate(answers: Sequence[Answer], principle: str) -> list[float | None]:
        by = [principle] if principle else list(settings.principles) or [""]
        replies = client.ask([client.short(wording.rating(answer, one)) for answer in answers for one in by])
        grades = [wording.grade_of(reply["weights"], reply["text"]) for reply in replies]
        return [_mean(grades[start : start + len(by)]) for start in range(0, len(grades), len(by))]

    def write(chats: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        return [reply["text"] for reply in client.ask([client.long(chat) for chat in chats])]

    return JudgeClient(compare, rate, write, client.results)


def _mean(grades: Sequence[float | None]) -> float | None:
    valid = [grade for grade in grades if grade is not None]
    return fmean(valid) if valid else None


@dataclass(frozen=True)
class Credentials:
    """What an endpoint is shown."""

    headers: Mapping[str, str]
    secret: str

    def hidden_in(self, text: str) -> str:
        """Return a text without the key, which an endpoint may repeat in its own words."""
        return text.replace(self.secret, "***") if self.secret else text


def credentials_of(judge: Judge, settings: EndpointSettings) -> Credentials:
    """Read a source's key. Raise RecipeError where its variable holds none."""
    name, where = settings.key_env, f"sources.{judge.name}.key_env"
    if name is None:
        return Credentials({}, "")
    key = os.environ.get(name, "").strip()
    if not key:
        problem = f"the environment variable {name} is not set"
        raise RecipeError(problem, where, f"set it to the key of {settings.url}")
    if not (key.isascii() and key.isprintable()):
        problem = f"the environment variable {name} holds no key"
        raise RecipeError(problem, where, "a key has no line breaks and plain characters only")
    return Credentials({"Authorization": f"Bearer {key}"}, key)


class Client:
    """Asks one endpoint, and remembers what it answered and what that has cost since it was opened."""

    def __init__(self, judge: Judge, settings: EndpointSettings, cache: Path | None) -> None:
        self.where, self.model, self.settings = f"sources.{judge.name}", judge.rest, settings
        self._credentials = credentials_of(judge, settings)
        self._url = f"{settings.url}/chat/completions"
        place = hashlib.sha256(f"{self._url} {self.model}".encode()).hexdigest()[:16]
        self._journal = Replies(cache / f"judge-{place}.jsonl" if cache else None)
        self._spent = Spent(cache / f"spent-{place}-{judge.name}.jsonl" if cache else None)
        self._client = make_client(self._url)
        self._lock, self._over = threading.Lock(), threading.Event()
        self._costs = {"requests": 0.0, "tokens": 0.0, "retries": 0.0, "remembered": 0.0}

    def short(self, chat: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Make the request for a verdict."""
        more = {"logprobs": True, "top_logprobs": TOP} if self.settings.logprobs else {}
        return self._body(chat, self.settings.reply_tokens) | more

    def long(self, chat: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Make the request for a text."""
        return self._body(chat, self.settings.text_tokens)

    def _body(self, chat: Sequence[Mapping[str, str]], tokens: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [dict(turn) for turn in chat],
            "max_tokens": tokens,
            "temperature": self.settings.temperature,
        }

    def results(self) -> dict[str, float]:
        """Return what it has cost: requests, tokens, attempts that were repeated, replies that were remembered."""
        return dict(self._costs)

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the reply to each request, `text` and `weights`, in their order; equal ones are sent once.

        Raises JudgeError where there is none within patience, or a limit is reached.
        """
        keys = [_key(self._url, body) for body in bodies]
        open_ones = {key: body for key, body in zip(keys, bodies, strict=True) if key not in self._journal}
        self._costs["remembered"] += len(set(keys)) - len(open_ones)
        self._over.clear()
        with ThreadPoolExecutor(self.settings.limits.concurrency) as pool:
            asked = [pool.submit(self._answer, key, body) for key, body in open_ones.items()]
            try:
                ended, _ = wait(asked, return_when=FIRST_EXCEPTION)
                for one in ended:
                    one.result()
            finally:
                self._over.set()
                pool.shutdown(cancel_futures=True)
        return [self._journal[key] for key in keys]

    def _answer(self, key: str, body: Mapping[str, Any]) -> None:
        """Ask until there is a reply, and keep it."""
        limits, attempts = self.settings.limits, count()

        def attempt() -> dict[str, Any]:
            if next(attempts):
                self._add("retries", 1)
            self._count_request()
            return reply_of(post(self._client, self._url, self._credentials.headers, body, limits.timeout))

        try:
            reply = patiently(attempt, limits.pause, limits.patience, self._over.wait)
        except RefusedError as error:
            raise self._gives_up(f"the judge refuses ({error})", _refusal_remedy(str(error))) from None
        except FaultError as error:
            problem = f"the judge does not answer ({error})"
            raise self._gives_up(problem, "the same command goes on from here once it does") from None
        self._spend("tokens", reply.pop("tokens") or len(json.dumps(body)) // 4)
        self._journal.add(key, reply)

    def _count_request(self) -> None:
        """Count one more request before it is sent. Raises JudgeError where a limit is reached."""
        limits = self.settings.limits
        with self._lock:
            for name, limit in (("requests", limits.requests), ("tokens", limits.tokens)):
                if limit is not None and self._spent[name] >= limit:
                    remedy = f"raise limits.{name}; what was answered is kept, and not asked again"
                    raise JudgeError(f"the judge has had its {limit} {name}", f"{self.where}.limits.{name}", remedy)
            self._costs["requests"] += 1
            self._spent.add("requests", 1)

    def _spend(self, name: str, amount: int) -> None:
        with self._lock:
            self._costs[name] += amount
            self._spent.add(name, amount)

    def _add(self, name: str, amount: float) -> None:
        with self._lock:
            self._costs[name] += amount

    def _gives_up(self, problem: str, remedy: str) -> JudgeError:
        """Make the error. It is raised without its cause, which may hold the key."""
        return JudgeError(self._credentials.hidden_in(problem), self.where, remedy)


def _key(url: str, body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()


def _refusal_remedy(reason: str) -> str:
    if "logprobs" in reason:
        return "set the source's logprobs to false"
    return "check the source's url, its model's name and the key"


def reply_of(value: Any) -> dict[str, Any]:
    """Read a chat completion: its text, the probabilities of its first token, and how many tokens it took.

    Raises FaultError where it is of another form.
    """
    try:
        choice = value["choices"][0]
        text = choice["message"]["content"]
        text = "" if text is None else text
        told = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
        weights = {str(one["token"]): math.exp(min(float(one["logprob"]), 0.0)) for one in told}
        tokens = int((value.get("usage") or {}).get("total_tokens") or 0)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise FaultError("its reply is no chat completion") from error
    if not isinstance(text, str) or not all(math.isfinite(weight) for weight in weights.values()):
        raise FaultError("its reply is no chat completion")
    return {"text": text, "weights": weights, "tokens": tokens}
