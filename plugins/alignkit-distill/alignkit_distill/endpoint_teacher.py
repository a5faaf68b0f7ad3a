"""An endpoint that reads given tokens: vLLM's completions with `prompt_logprobs`.

Nothing is sampled there that is used: the answer to a request is thrown away but for what it says of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from alignkit import Judge, RecipeError, StageError

if TYPE_CHECKING:
    from alignkit_rlaif.endpoint import Credentials, EndpointSettings
    from httpx2 import Client
    from transformers import PreTrainedTokenizerBase

SAME = 0.5
"""Share of the tokens that must read alike; where fewer do, the endpoint has other tokens."""
LEAST = -100.0
"""A log-probability of minus infinity becomes this."""


class ToldAnswers(NamedTuple):
    """What an endpoint tells of answers, place by place."""

    ids: list[list[list[int]]]
    """The k likeliest tokens, the likeliest first (n, t, k)."""
    likeliest: list[list[list[float]]]
    """Their log-probabilities."""
    token: list[list[float]]
    """That of the token that stands there (n, t)."""


class ToldPlace(NamedTuple):
    """The same at one place: (k,), (k,), a number."""

    ids: list[int]
    likeliest: list[float]
    token: float


@dataclass(frozen=True)
class ScoringEndpoint:
    """Asks an endpoint for the log-probabilities of given tokens."""

    name: str
    """Of its source, for messages."""
    model: str
    settings: EndpointSettings
    credentials: Credentials
    top_k: int
    tokenizer: PreTrainedTokenizerBase

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> ToldAnswers:
        """Return what it tells of each answer. Raise StageError where it gives nothing within patience."""
        from alignkit.http import make_client

        rows = list(zip(prompts, answers, strict=True))
        concurrency = self.settings.limits.concurrency
        with make_client(self.settings.url) as client, ThreadPoolExecutor(concurrency) as pool:
            places = list(pool.map(lambda row: self._ask(client, [*row[0], *row[1]])[len(row[0]) :], rows))
        self._check_tokens(answers, places)
        told = ToldAnswers([], [], [])
        for answer, row in zip(answers, places, strict=True):
            read = [self._read(place, token) for place, token in zip(row, answer, strict=True)]
            told.ids.append([place.ids for place in read])
            told.likeliest.append([place.likeliest for place in read])
            told.token.append([place.token for place in read])
        return told

    def _ask(self, client: Client, tokens: list[int]) -> list[Any]:
        from alignkit.http import FaultError, RefusedError, patiently, post

        limits, url = self.settings.limits, f"{self.settings.url}/completions"
        body = {"model": self.model, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": self.top_k}

        def attempt() -> Any:
            return post(client, url, self.credentials.headers, body, limits.timeout)

        try:
            return self._places(patiently(attempt, limits.pause, limits.patience), len(tokens))
        except RefusedError as error:
            raise self._gives_up(f"refuses ({error})", "check its url, its model's name and the key") from None
        except FaultError as error:
            remedy = "the same command goes on from here once it does"
            raise self._gives_up(f"does not answer ({error})", remedy) from None

    def _places(self, reply: Any, length: int) -> list[Any]:
        """Return what a reply says of each token of its prompt; of the first nothing."""
        try:
            places = reply["choices"][0]["prompt_logprobs"]
        except (KeyError, IndexError, TypeError):
            places = None
        if (
            not isinstance(places, list)
            or len(places) != length
            or not all(isinstance(one, dict) for one in places[1:])
        ):
            remedy = "serve the teacher by something that tells prompt_logprobs, such as vLLM"
            raise self._gives_up("does not tell the log-probabilities of given tokens", remedy)
        return places

    def _read(self, place: Mapping[str, Mapping[str, Any]], token: int) -> ToldPlace:
        """Return what is told of a token. Raise StageError where that is less than was asked for."""
        said = {int(one): max(float(fact["logprob"]), LEAST) for one, fact in place.items()}
        best = sorted(said, key=lambda one: -said[one])[: self.top_k]
        if token not in said or len(best) < self.top_k:
            raise self._gives_up(f"tells of fewer than {self.top_k} tokens at a place", "lower top_k")
        return ToldPlace(best, [said[one] for one in best], said[token])

    def _check_tokens(self, answers: Sequence[Sequence[int]], places: Sequence[Sequence[Any]]) -> None:
        """Refuse an endpoint whose words for the tokens are others."""
        pairs = [
            (self.tokenizer.decode([token]), place.get(str(token), {}).get("decoded_token"))
            for answer, told in zip(answers, places, strict=True)
            for token, place in zip(answer, told, strict=True)
        ]
        known = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
        if sum(ours == theirs for ours, theirs in known) < SAME * len(known):
            remedy = "serve a teacher of the policy's family, which has the same tokenizer"
            raise self._gives_up("reads other tokens than the policy", remedy)

    def _gives_up(self, problem: str, remedy: str) -> StageError:
        return StageError(f"the teacher {self.credentials.hidden_in(problem)}", f"sources.{self.name}", remedy)


def open_endpoint(judge: Judge, top_k: int, tokenizer: PreTrainedTokenizerBase) -> ScoringEndpoint:
    """Open an endpoint as a teacher. Raise RecipeError where the source is none that tells log-probabilities."""
    where = f"sources.{judge.name}"
    if judge.scheme != "openai":
        problem = f"a judge of the scheme {judge.scheme!r} tells no log-probabilities of given tokens"
        raise RecipeError(problem, where, 'name an endpoint, { judge = "openai:NAME", url = "..." }, or a policy')
    try:
        from alignkit_rlaif.endpoint import EndpointSettings, credentials_of
    except ImportError as error:
        remedy = 'pip install "alignkit-distill[endpoint]"'
        raise RecipeError("a teacher at an endpoint needs the package alignkit-rlaif", where, remedy) from error

    settings = EndpointSettings.model_validate(dict(judge.options))
    return ScoringEndpoint(judge.name, judge.rest, settings, credentials_of(judge, settings), top_k, tokenizer)
