"""Scores by reward models that servers hold (`rewards` of a machine), in place of models in this process.

Answers are encoded here as the model was taught to read them, and go there as tokens; logits come back. Tokenizer, the
class that counts, and mean and spread of the scores are those of the model's folder. So a score is the one that this
process would give, but for rounding.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from alignkit.contract.kinds import RewardModel
from alignkit.contract.reward_function import Answer, Score
from alignkit.data.adapter_folder import is_adapter
from alignkit.errors import RecipeError
from alignkit.serve.server import Server
from alignkit.serve.serving import Serving
from alignkit.serve.vllm import EngineClient
from alignkit.training import parallel
from alignkit.training.adapters import MERGED
from alignkit.training.arithmetic import arithmetic
from alignkit.training.classifiers import Limit, Warn, as_read, shortened
from alignkit.training.configs import open_config, positions_of
from alignkit.training.heads import bias_of, head_of, labels_of, places_of_score
from alignkit.training.opening import normalised
from alignkit.training.scorer import has_score
from alignkit.training.tokenizers import _tokenizer
from alignkit.training.weight_files import scale_of

WHERE = "machines.toml, rewards"
ADAPTER = "is an adapter", "train all its weights, or " + MERGED
"""What is wrong with a reward model that is one, and what to do."""


@dataclass(frozen=True)
class RewardServers:
    """Servers that score. Of several processes the first one starts what is to be started."""

    serving: Serving
    folder: Path
    """Where a server that is started writes, in a file of its own."""
    resources: ExitStack
    """Ends what was started."""

    def open(self, reward: RewardModel, warn: Warn | None = None) -> Score:
        """Return one function from answers to scores, once a server is there. Raise RecipeError where the model cannot
        be served, StageError where no server holds it."""
        config, head = open_config(reward.path), head_of(reward.path)
        labels = labels_of(reward.path, head) or int(config.num_labels)
        places = places_of_score(reward, config, labels)
        check_served(reward)
        tokenizer = _tokenizer(reward.path)
        limit = Limit(reward.name, positions_of(config), warn)
        engine = self._engine(reward)

        def logits(answers: Sequence[Answer]) -> list[list[float]]:
            rows = [as_read(answer, tokenizer) for answer in answers]
            limit.tell([len(row) for row in rows], "beginning")
            return engine.classify([shortened(row, limit.tokens, tokenizer) for row in rows], labels)

        return normalised(logits, places, scale_of(reward.path))

    def _engine(self, reward: RewardModel) -> EngineClient:
        server: Server | None = None

        def start() -> str:
            nonlocal server
            dtype = str(arithmetic("auto")).removeprefix("torch.")
            words = [str(reward.path), "--served-model-name", reward.name, "--runner", "pooling", "--dtype", dtype]
            server = Server(self.serving, words, self.folder / f"vllm-{reward.name}.log", WHERE)
            self.resources.callback(server.close)
            server.wait()
            return server.url

        urls = (parallel.first(start),) if self.serving.vllm else self.serving.urls
        alive = server.check if server else lambda: None
        engine = self.resources.enter_context(EngineClient(urls, self.serving, WHERE, alive))
        engine.find(reward.path, reward.name)
        return engine


def check_served(reward: RewardModel) -> None:
    """Raise RecipeError where a server would read a folder otherwise than it is read here, or not at all."""
    head = head_of(reward.path)
    if is_adapter(reward.path):
        raise unserved(reward.name, *ADAPTER)
    if not has_score(open_config(reward.path)):
        raise unserved(reward.name, "is no decoder with a head on its last token", "take one that is")
    if head is None or head.renaming or bias_of(head) is not None:
        reason = "has a head of another form than transformers knows"
        raise unserved(reward.name, reason, "take one that `reward` has trained")


def unserved(name: str, reason: str, remedy: str) -> RecipeError:
    """Word that servers cannot score by a reward model."""
    problem = f"no server can score by {name!r}, which {reason}"
    return RecipeError(problem, WHERE, f"{remedy}, or leave rewards out of the machine")
