"""The routes of vLLM's server: answers to tokens, and new weights (https://docs.vllm.ai, 0.32).

Prompts and answers are token ids, so nothing is encoded twice. A request holds one prompt: of several with one seed all
would be answered by the same random numbers. The routes that change weights are there where the server was started with
`VLLM_SERVER_DEV_MODE=1`, and adapters where with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from alignkit.errors import StageError
from alignkit.http import FaultError, RefusedError, get, make_client, patiently, post, send
from alignkit.serve.serving import Serving

if TYPE_CHECKING:
    from httpx2 import Client

R = TypeVar("R")
T = TypeVar("T")

MODEL = "policy"
"""What a server that we start calls its model."""
PAUSE = 0.5
"""Seconds before a request is sent again, at first."""


class Sampling(NamedTuple):
    """How answers are drawn."""

    longest: int
    """Tokens after which they are cut."""
    temperature: float
    stop: frozenset[int]
    """Tokens that end an answer, and belong to it."""


class Reply(NamedTuple):
    """One answer."""

    tokens: list[int]
    logprobs: list[float]
    """Of each token, by the server."""


class EngineClient:
    """Servers that hold one model, and what they are asked."""

    def __init__(self, urls: Sequence[str], serving: Serving, where: str, alive: Callable[[], None]) -> None:
        """`alive` raises StageError where a server that we have started has ended."""
        self._serving, self._where, self._alive = serving, where, alive
        self._clients: dict[str, Client] = {url.rstrip("/"): make_client(url) for url in urls}
        self._model = MODEL
        self._run, self._version, self._adapter = token_hex(4), "", ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def open(self, longest: int) -> None:
        """Look what the servers hold. Raise StageError where rows of `longest` tokens do not fit them: vLLM would cut
        answers short and not say so."""
        for url in self._clients:
            self._model, limit = self._get(url, "/v1/models", _model_of)
            if limit is not None and limit < longest:
                problem = f"the server at {url} reads {limit} tokens, and prompts with their answers need {longest}"
                raise self._error(problem, f"start it with --max-model-len {longest}, or set max_length = {limit}")

    def find(self, folder: Path, name: str) -> None:
        """Keep to the servers that hold the model of this folder, under this name or the folder's own.

        Raise StageError where none does, or one holds another model under this name.
        """
        for url in list(self._clients):
            held = self._get(url, "/v1/models", lambda told: {str(one["id"]): str(one["root"]) for one in told["data"]})
            known = next((one for one in (name, str(folder)) if one in held), None)
            if known is None:
                self._clients.pop(url).close()
                continue
            root = Path(held[known])
            if root.is_dir() and not root.samefile(folder):
                raise self._error(f"the server at {url} holds {root} under the name {known!r}", f"serve {folder} there")
            self._model = known
        if not self._clients:
            problem = f"no server at `urls` holds the model {name!r}"
            raise self._error(problem, f"start one: vllm serve {folder} --runner pooling --served-model-name {name}")

    def answer(self, prompts: Sequence[Sequence[int]], how: Sampling, seeds: Sequence[int]) -> list[Reply]:
        """Return an answer to each prompt; each is drawn by its seed alone.

        Raise StageError where a server does not answer, or has not the weights that it was given last.
        """
        self._check_version()
        return self._each(
            lambda url, row: self._reply(url, row[0], how, row[1]), list(zip(prompts, seeds, strict=True))
        )

    def classify(self, rows: Sequence[Sequence[int]], classes: int) -> list[list[float]]:
        """Return the logits of each row of tokens, one for each class. Raise StageError where a server gives others."""
        return self._each(lambda url, row: self._logits(url, row, classes), rows)

    def _each(self, ask: Callable[[str, R], T], rows: Sequence[R]) -> list[T]:
        """Ask for each row, of one server after another, so many at once as the machine says."""
        urls = list(self._clients)
        with ThreadPoolExecutor(min(self._serving.at_once, len(rows)) or 1) as pool:
            asked = [pool.submit(ask, urls[number % len(urls)], row) for number, row in enumerate(rows)]
            try:
                return [one.result() for one in asked]
            except StageError:
                for one in asked:
                    one.cancel()
                raise

    def _check_version(self) -> None:
        for url in self._clients if self._version else ():
            held = self._get(url, "/weight_info", lambda told: str(told["weight_version"]))
            if held != self._version:
                problem = f"the server at {url} holds the weights {held!r}, and was given {self._version!r}"
                raise self._error(problem, "let no other run use it, and look whether it was started again")

    def _reply(self, url: str, prompt: Sequence[int], how: Sampling, seed: int) -> Reply:
        client, timeout = self._clients[url], self._serving.timeout
        asked = {
            "model": self._adapter or self._model,
            "prompt": list(prompt),
            "max_tokens": how.longest,
            "temperature": how.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "ignore_eos": True,
            "stop_token_ids": sorted(how.stop),
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "seed": seed,
        }
        return self._ask(url, lambda: _reply_of(post(client, f"{url}/v1/completions", {}, asked, timeout), how))

    def _logits(self, url: str, row: Sequence[int], classes: int) -> list[float]:
        client, timeout = self._clients[url], self._serving.timeout
        asked = {"model": self._model, "input": list(row), "use_activation": False}
        return self._ask(url, lambda: _logits_of(post(client, f"{url}/classify", {}, asked, timeout), classes))

    def give_weights(self, folder: Path, version: int) -> None:
        """Let the servers answer by the weights of this folder, once they have ended what they work on."""
        self._version = f"{self._run}-{version}"
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        for url in self._clients:
            self._send(url, "/pause?mode=wait", {})
            self._send(url, "/collective_rpc", reload, once=True)  # one that could not read them is broken
            self._send(url, "/reset_prefix_cache", {})
            self._send(url, "/update_weight_version", {"new_version": self._version})
            self._send(url, "/resume", {})

    def give_adapter(self, folder: Path, version: int) -> None:
        """Let the servers answer by the model that they hold with the adapter of this folder.

        Each version has a name of its own, so a server that was started again does not know it.
        """
        name = f"{MODEL}-{self._run}-{version}"
        for url in self._clients:
            self._send(url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
            if self._adapter:
                self._send(url, "/v1/unload_lora_adapter", {"lora_name": self._adapter})
        self._adapter = name

    def _send(self, url: str, route: str, body: Mapping[str, Any], *, once: bool = False) -> None:
        client, timeout = self._clients[url], self._serving.timeout
        self._ask(url, lambda: send(client, f"{url}{route}", body, timeout), once=once)

    def _get(self, url: str, route: str, read: Callable[[Any], T]) -> T:
        client, timeout = self._clients[url], self._serving.timeout

        def ask() -> T:
            told = get(client, f"{url}{route}", timeout)
            try:
                return read(told)
            except (LookupError, TypeError, ValueError) as error:
                raise FaultError(f"its reply to {route} is of another form") from error

        return self._ask(url, ask)

    def _ask(self, url: str, ask: Callable[[], T], *, once: bool = False) -> T:
        try:
            return patiently(ask, PAUSE, 0.0 if once else self._serving.patience, self._rest)
        except RefusedError as error:
            remedy = "look at its log, and whether it was started with VLLM_SERVER_DEV_MODE=1"
            raise self._error(f"the server at {url} refuses ({error})", remedy) from None
        except FaultError as error:
            self._alive()
            problem = f"the server at {url} does not answer ({error})"
            raise self._error(problem, "the same command goes on from here once it does") from None

    def _rest(self, seconds: float) -> None:
        self._alive()
        time.sleep(seconds)

    def _error(self, problem: str, remedy: str) -> StageError:
        return StageError(problem, self._where, remedy)


def _model_of(told: Any) -> tuple[str, int | None]:
    """Return the name of the model that a server holds, and how many tokens it reads where it tells."""
    model = told["data"][0]
    limit = model.get("max_model_len")
    return str(model["id"]), None if limit is None else int(limit)


def _reply_of(told: Any, how: Sampling) -> Reply:
    """Read a reply. Raise FaultError where it is none, so that the same is asked again."""
    try:
        (choice,) = told["choices"]
        reply = Reply(
            [int(token) for token in choice["token_ids"]], [*map(float, choice["logprobs"]["token_logprobs"])]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FaultError("its reply is no completion with token ids") from error
    ended = bool(reply.tokens) and reply.tokens[-1] in how.stop
    if len(reply.tokens) != len(reply.logprobs) or not (ended or len(reply.tokens) == how.longest):
        raise FaultError(f"its answer has {len(reply.tokens)} of {how.longest} tokens and no end")
    return reply


def _logits_of(told: Any, classes: int) -> list[float]:
    """Read the logits of one row. Raise FaultError where the reply has none, so that the same is asked again, and
    RefusedError where it has those of other classes."""
    try:
        (row,) = told["data"]
        logits = [float(value) for value in row["probs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise FaultError("its reply is no classification") from error
    if len(logits) != classes:
        raise RefusedError(f"it gives {len(logits)} logits, and the model has {classes}")
    if not all(map(isfinite, logits)):
        raise FaultError("its reply has logits that are not finite")
    return logits
