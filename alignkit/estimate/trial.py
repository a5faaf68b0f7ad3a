"""What a stage will do with a model, done with a miniature of it before any weights are loaded.

It is told what does not work, with what does instead, and what works in a slower way only. A step of each loop is
taken, so that what would end a stage after its training is met here.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignkit.contract.needs import Needs, PackedNeeds, PairNeeds, SamplingNeeds, TrainerNeeds
from alignkit.contract.row_settings import TrainingSettings
from alignkit.contract.settings import LoRA
from alignkit.contract.stage import Stage
from alignkit.errors import AlignkitError, DataError, Problem, RecipeError
from alignkit.training.adapters import weights_with
from alignkit.training.configs import check_causal
from alignkit.training.encoding import LabelledTokens, TokenPair
from alignkit.training.layouts import no_shared_body
from alignkit.training.likelihood import train_language_model
from alignkit.training.miniature import miniature
from alignkit.training.models import Task, adapted_model, score_head
from alignkit.training.output_layer import logprobs_of
from alignkit.training.packing import FAILURES, LAID_OUT, agree, probe_rows
from alignkit.training.pair_scores import train_scores
from alignkit.training.rollouts import answer_logprobs
from alignkit.training.scorer import made_scorer, scorer_for
from alignkit.training.trainers import trl_makes_its_logits
from alignkit.training.trunk import Trunk
from alignkit.training.ways import Ways, form_by, ways_of_config

LENGTH = 41
"""Tokens of a row that a step is taken on: more than a miniature's windows and chunks have, and no multiple of them."""
TRYING = TrainingSettings(learning_rate=1e-3, batch=2, precision="fp32")
"""The settings of a step that is only tried."""
STIRRED = 0.02
"""Standard deviation of the weights of an adapter that is merged for a try."""


@dataclass(frozen=True)
class Uses:
    """What a stage does with its policy."""

    trains: Literal["language model", "score"] | None = None
    """By `train_language_model` or `train_scores`."""
    reads: bool = False
    """Log-probabilities of answers are read by passes of ours."""
    learns: bool = False
    """And learnt from."""
    head: bool = False
    """A trainer reads logits that it makes itself."""
    samples: bool = False
    critic: Literal["separate", "shared"] | None = None
    cut: bool = False
    """Upper layers alone learn."""
    lora: LoRA | None = None

    @classmethod
    def of(cls, needs: Needs | None) -> "Uses":
        if isinstance(needs, TrainerNeeds) and not needs.scores:
            return cls(reads=True, learns=True, head=True, lora=needs.lora)
        if isinstance(needs, TrainerNeeds | PackedNeeds):
            return cls("score" if needs.scores else "language model", lora=needs.lora)
        if isinstance(needs, PairNeeds):
            return cls(reads=True, learns=True, lora=needs.lora)
        if isinstance(needs, SamplingNeeds):
            cut, critic = needs.upper_layers is not None, needs.critic
            return cls(reads=True, learns=True, samples=True, critic=critic, cut=cut, lora=needs.lora)
        return cls(reads=needs is not None, samples=needs is not None)


@dataclass(frozen=True)
class Trial:
    """What came of it."""

    problems: tuple[Problem, ...] = ()
    remarks: tuple[Problem, ...] = ()


_known: dict[str, Trial] = {}


def tried(config: Any, uses: Uses, where: Path) -> Trial:
    """Try a stage on a miniature of a model, once for each config; `where` is its folder, for messages."""
    key = f"{where} {config.to_json_string()} {uses}"
    if key not in _known:
        _known[key] = _tried(config, uses, where)
    return _known[key]


def _tried(config: Any, uses: Uses, where: Path) -> Trial:
    try:
        check_causal(config, where)
    except DataError as error:
        return Trial(error.problems)
    ways = ways_of_config(config)
    if ways is None:
        problem = f"of the architecture {config.model_type!r} no small model can be made, so nothing of it is tried"
        return Trial(remarks=(Problem(problem, str(where), "--smoke tries every stage on the model itself"),))
    problems: list[Problem] = []
    for attempt in _attempts(config, uses, ways):
        try:
            attempt()
        except AlignkitError as error:
            problems += error.problems
        except FAILURES as error:
            problems.append(_fails(config, error))
    return Trial(tuple(dict.fromkeys(problems)), tuple(_slower(config, uses, ways, where)))


def _fails(config: Any, error: BaseException) -> Problem:
    lines = str(error).strip().splitlines() or [""]
    problem = f"a small model of the architecture {config.model_type!r} fails at what this stage does"
    return Problem(f"{problem} ({type(error).__name__}: {lines[0]})", remedy="take another method or another model")


def _attempts(config: Any, uses: Uses, ways: Ways) -> Iterator[Callable[[], None]]:
    """Yield what is tried, each with a miniature of its own."""
    yield lambda: _saved_and_opened(_small(config), AutoModelForCausalLM)
    if uses.trains == "language model":
        yield lambda: _teach(_adapted(_small(config), uses))
    if uses.trains == "score" or uses.critic == "separate":
        yield lambda: _check_score(_scorer(config))
    if uses.trains == "score":
        yield lambda: _teach_scores(_adapted(_scorer(config), uses, "SEQ_CLS"))
        yield lambda: _saved_and_opened(_scorer(config), scorer_for(config))
    if uses.learns:
        yield lambda: _learns(_adapted(_small(config), uses), ways)
    if uses.head:
        yield lambda: _check_head(_small(config))
    if uses.lora:
        yield lambda: _merges(_adapted(_small(config), uses), _small(config))
    if uses.critic == "shared" or uses.cut:
        yield lambda: _shares(_small(config), uses, ways)


def _small(config: Any) -> PreTrainedModel:
    made = miniature(config)
    assert made is not None
    return made


def _adapted(small: PreTrainedModel, uses: Uses, task: Task = "CAUSAL_LM") -> Any:
    return adapted_model(small, uses.lora, task, None) if uses.lora else small


def _scorer(config: Any) -> Any:
    small = copy.deepcopy(_small(config).config)
    small.num_labels, small.get_text_config().pad_token_id = 1, 0
    return made_scorer(small)


def _check_score(scorer: PreTrainedModel) -> None:
    score_head(scorer)


def _teach(model: Any) -> None:
    """Take a step as `sft` and `clm` do."""
    ids = list(range(3, 3 + LENGTH))
    with TemporaryDirectory() as folder:
        train_language_model(model, [LabelledTokens(ids, ids)] * 2, _trying(Path(folder)), TRYING)


def _teach_scores(model: Any) -> None:
    """Take a step as `reward` does."""
    ids = list(range(3, 3 + LENGTH))
    with TemporaryDirectory() as folder:
        train_scores(model, [TokenPair(ids, ids[::-1], {})] * 2, _trying(Path(folder)), TRYING)


def _learns(model: Any, ways: Ways) -> None:
    """Compute what answers are learnt from, with its gradient."""
    prompts, answers = probe_rows(model, ((3, 5), (3, 4)))
    if (form := form_by(ways, model)) == "logits":
        table = answer_logprobs(model, prompts, answers)
    else:
        table = logprobs_of(model, LAID_OUT[form](prompts, answers, model.device))
    table.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if not any(weight.grad is not None and bool(weight.grad.any()) for weight in model.parameters()):
        raise RuntimeError("no weight gets a gradient")


def _shares(model: Any, uses: Uses, ways: Ways) -> None:
    """Put a critic on the policy's own body, and cut that where only its upper layers learn."""
    form = form_by(ways, model)
    if form == "logits":
        raise no_shared_body(model)
    if uses.cut:
        Trunk.cut(model, 1, LAID_OUT[form])


def _check_head(model: PreTrainedModel) -> None:
    """Refuse a model whose logits a trainer of TRL would make otherwise than it does itself."""
    if not trl_makes_its_logits(model):
        problem = f"the logits of a {type(model).__name__} are not made as TRL's trainer makes them"
        raise RecipeError(problem, remedy="take a method that compares pairs, or another model")


@torch.no_grad()
def _merges(adapted: Any, plain: PreTrainedModel) -> None:
    """Compare what an adapter changes with what it changes once it is merged, as a later stage will find it."""
    ids = torch.arange(3, 3 + LENGTH)[None]
    chance = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=STIRRED, generator=chance)
    plain.load_state_dict(weights_with(adapted))
    found, expected = (one(input_ids=ids, use_cache=False).logits for one in (plain, adapted))
    if not agree(found, expected):
        raise RuntimeError("merging its adapter makes another model of it")


def _saved_and_opened(model: PreTrainedModel, kind: Any) -> None:
    """Save a model, open it again, and compare what they compute."""
    ids = torch.arange(3, 3 + LENGTH)[None]
    model.requires_grad_(False).train(False)
    with TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        again = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        again.requires_grad_(False).train(False)
        expected, found = (one(input_ids=ids, use_cache=False).logits for one in (model, again))
    if not agree(found, expected):
        raise RuntimeError("what is saved of it is not what was saved")


def _slower(config: Any, uses: Uses, ways: Ways, where: Path) -> Iterator[Problem]:
    """Yield of ways that are exact, and slower than usual."""
    found = []
    if uses.reads and not ways.packed:
        found.append("rows are padded" if ways.padded else "rows go through it one by one")
    if uses.samples and ways.decoding.cache == "none":
        found.append("for each token of an answer all those before it are read anew")
    elif uses.samples and ways.decoding.cache == "level":
        found.append("only prompts of one length are answered together")
    if found:
        problem = f"a model of the architecture {config.model_type!r} is exact in slower ways only: {'; '.join(found)}"
        yield Problem(problem, str(where), "nothing need be done: the result is the same, it takes longer")


def _trying(folder: Path) -> Stage:
    return cast("Stage", _Trying(folder))


@dataclass
class _Trying:
    """A stage that tells and keeps nothing."""

    folder: Path
    name: str = "trial"
    seed: int = 0
    offline: bool = True
    rank: int = 0
    world: int = 1
    stopping: bool = False

    def log(self, step: int, of: int | None, values: Mapping[str, float]) -> None:
        """Tell nobody."""

    def warn(self, problem: str, remedy: str) -> None:
        """Tell nobody."""

    def commit(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep nothing."""

    def latest(self) -> Path | None:
        return None

    def begin_part(self, part: str, steps: int) -> int:
        return 0
