"""Who answers the prompts of updates: the policy itself, or servers that are given its weights before they answer.

What a server says of log-probabilities is never taken for the policy's own: its kernels, its precision and the age of
its weights differ. The policy reads every answer itself; what the server said tells how far the two are apart
(`off_policy`).
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from peft import PeftModel
from torch import Generator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.contract.stage import Stage
from alignkit.serve.serving import Rollouts
from alignkit.training import handing_over, layouts, parallel, sharding
from alignkit.training.layouts import Models
from alignkit.training.rollouts import Rollout, Tokens

WHERE = "machines.toml, rollouts"
LOG = "vllm.log"
"""Where a server that a stage has started writes, in the stage's scratch folder."""

_arranged: ContextVar[Rollouts | None] = ContextVar("rollouts", default=None)


def arrange(rollouts: Rollouts | None) -> None:
    """Let answers of updates come from these servers; None: from the policy itself."""
    _arranged.set(rollouts)


class Asked(NamedTuple):
    """Prompts to be answered."""

    prompts: Sequence[Tokens]
    rows: list[int]
    """Which of them, each as often as it is to be answered."""
    longest: int
    """Tokens after which an answer is cut."""
    temperature: float


class Answering(Protocol):
    """Answers prompts by the policy as it was given last."""

    @property
    def elsewhere(self) -> bool:
        """Whether what answers is another program than the policy that learns, so that the two are compared."""
        ...

    def give(self, version: int) -> None:
        """Answer by the policy's weights of now, which are those after so many updates, from here on."""
        ...

    def answer(self, asked: Asked, chance: Generator) -> Callable[[], Rollout]:
        """Begin to answer, and return what waits for the answers. Raise StageError where there are none."""
        ...

    def close(self) -> None:
        """End what was started for this."""
        ...


@dataclass(frozen=True)
class Own:
    """The policy itself answers, at once."""

    models: Models

    @property
    def elsewhere(self) -> bool:
        return False

    def give(self, version: int) -> None:
        """Do nothing: it has its own weights."""

    def answer(self, asked: Asked, chance: Generator) -> Callable[[], Rollout]:
        models = replace(self.models, temperature=asked.temperature)
        rollout = layouts.sample(models, asked.prompts, asked.rows, asked.longest, chance)
        return lambda: rollout

    def close(self) -> None:
        """Do nothing."""


class Served:
    """Servers of vLLM answer, while this process may learn. Of several processes the first one asks them for all."""

    def __init__(
        self, models: Models, tokenizer: PreTrainedTokenizerBase, stage: Stage, rollouts: Rollouts, room: int
    ) -> None:
        """Start a server, or find those that run; a prompt with its answer has `room` tokens at most.

        The weights that are given first are those of now.
        """
        self._models, self._rollouts, self._room = models, rollouts, room
        self._resources = ExitStack()
        self._version: int | None = None
        """Of the weights that the servers hold; None: nobody has given them any."""
        whole = sharding.unsharded(models.policy)
        parallel.first(lambda: self._begin(whole, tokenizer, stage.folder / LOG))

    def _begin(self, whole: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, log: Path) -> None:
        from alignkit.serve.server import Server
        from alignkit.serve.vllm import EngineClient

        folder = tempfile.mkdtemp(prefix="alignkit-", dir=self._rollouts.folder)
        self._resources.callback(shutil.rmtree, folder, ignore_errors=True)
        self._folder, self._server = Path(folder), None
        if self._rollouts.vllm:
            held = handing_over.write_model(whole, tokenizer, self._folder / "model", self._models.dtype)
            self._server = Server(self._rollouts, self._words(held), log, WHERE)
            self._resources.callback(self._server.close)
        urls = [self._server.url] if self._server else self._rollouts.urls
        self._engine = self._resources.enter_context(EngineClient(urls, self._rollouts, WHERE, self._check_alive))
        self._thread = self._resources.enter_context(ThreadPoolExecutor(1, "answers"))
        self._opened = False

    def _words(self, held: Path) -> list[str]:
        """Return what `vllm serve` is told: the policy's own distribution, nothing cut off and nothing else added."""
        from alignkit.serve.vllm import MODEL

        words = [str(held), "--served-model-name", MODEL, "--max-model-len", str(self._room)]
        words += ["--dtype", "float32" if self._models.dtype == torch.float32 else "bfloat16"]
        words += ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
        if isinstance(self._models.policy, PeftModel):
            rank = self._models.policy.peft_config["default"].r
            words += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", str(_served_rank(rank))]
        return words

    def _check_alive(self) -> None:
        if self._server:
            self._server.check()

    @property
    def elsewhere(self) -> bool:
        return True

    def give(self, version: int) -> None:
        """Let the servers answer by the policy's weights of now, which are those after so many updates."""
        if version == self._version:
            return
        whole = sharding.unsharded(self._models.policy)
        parallel.first(lambda: self._hand_over(whole, version))
        self._version = version

    def _hand_over(self, whole: PreTrainedModel | PeftModel, version: int) -> None:
        if not self._opened:
            if self._server:
                self._server.wait()
            self._engine.open(self._room)
            self._opened = True
            if self._server and not isinstance(whole, PeftModel):
                return  # it was started with these weights
        folder = self._folder / str(version)
        if isinstance(whole, PeftModel):
            handing_over.write_adapter(whole, folder)
            self._engine.give_adapter(folder, version)
        else:
            handing_over.write_weights(whole, folder, self._models.dtype)
            self._engine.give_weights(folder, version)
        shutil.rmtree(folder)

    def answer(self, asked: Asked, chance: Generator) -> Callable[[], Rollout]:
        """Begin to answer; each row is drawn by a seed of its own."""
        from alignkit.serve.vllm import Sampling

        seeds = torch.randint(2**62, (len(asked.rows),), generator=chance).tolist()
        prompts = [asked.prompts[row] for row in asked.rows]
        how = Sampling(asked.longest, asked.temperature, self._models.stop_tokens)
        begun = self._thread.submit(self._engine.answer, prompts, how, seeds) if parallel.rank() == 0 else None

        def wait() -> Rollout:
            replies = parallel.first(lambda: begun.result() if begun else [])
            answers = [reply.tokens for reply in replies]
            ended = [answer[-1] in how.stop for answer in answers]
            return Rollout(asked.rows, prompts, answers, ended, [reply.logprobs for reply in replies])

        return wait

    def close(self) -> None:
        """End the server that was started, and remove what was handed over."""
        self._resources.close()


def answering_of(models: Models, tokenizer: PreTrainedTokenizerBase, stage: Stage, room: int) -> Answering:
    """Return who answers here; a prompt with its answer has `room` tokens at most."""
    rollouts = _arranged.get()
    return Served(models, tokenizer, stage, rollouts, room) if rollouts else Own(models)


def _served_rank(rank: int) -> int:
    """Return the least rank of adapters that vLLM has memory laid out for and that holds this one."""
    return next((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), rank)
