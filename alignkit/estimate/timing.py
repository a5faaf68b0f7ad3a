"""How fast this machine is with a model's layers, and what they keep for the gradient: a few passes of a small part.

The part has one or two of the model's layers, with weights of nobody's and few words, so that a large model is gauged
as quickly as a small one. What a layer takes is the difference of the two.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from alignkit.contract.settings import LoRA, Precision
from alignkit.estimate.sizes import built
from alignkit.training import room
from alignkit.training.arithmetic import computing, device
from alignkit.training.models import adapted_model
from alignkit.training.output_layer import OutputLayer, chosen_logprobs
from alignkit.training.packing import beneath, last_hidden
from alignkit.training.rollouts import draw, sample_answers

WORDS = 64
FEW, MANY = 32, 384
"""Tokens of the two passes whose times tell what a pass costs and what a token does."""
ROWS = 8, 48
"""Answers at once, of which the times tell what a row costs; very few are another kind of product, and cheaper."""
STEPS = 4, 20
"""Steps of decoding that are timed."""
HEAD_WORDS = 4096
"""Words, at most, of the head that is timed with many tokens."""
HEAD_BYTES = 64 * 2**20
"""Of the head that is timed with few."""
PARTED = "aot_eager_decomp_partition"
"""The compiler up to where it decides what a layer keeps and what the backward pass computes again; no code is made."""
TIMES = 3
LONG = 1.0
"""Seconds after which nothing is timed again."""


class Rate(NamedTuple):
    """Seconds that passes take."""

    start: float
    """Of a pass, whatever the layers."""
    once: float
    """Of a pass in each layer."""
    each: float
    """Of a unit in each layer."""

    def of(self, layers: int, units: float, passes: float = 1.0) -> float:
        return passes * (self.start + layers * self.once) + layers * units * self.each


class Gauge(NamedTuple):
    """What one layer takes, and the head."""

    kept: float
    """Bytes that a layer keeps of a token for the gradient."""
    read: Rate
    """Of tokens, without gradient."""
    learn: Rate
    """Of tokens, forward and backward."""
    decode: Rate
    """Of rows in one step of decoding with a cache, drawing included but for what grows with the vocabulary."""
    head_read: float
    """Seconds for each token and word of the vocabulary."""
    head_learn: float
    draw: Rate
    """Of tokens that are drawn in one step, for each word of the vocabulary instead of each layer."""


_known: dict[str, Gauge] = {}
"""What this process has timed: two estimates that are held against each other must come of the same times."""


def gauge(config: Any, lora: LoRA | None, precision: Precision, *, compiles: bool = False) -> Gauge:
    """Time a model's layers and head, and weigh what its layers keep. Takes seconds, once in a process.

    `compiles`: what they keep once they are compiled, which is less; times are those of layers as they are.
    """
    key = f"{config.to_json_string()} {lora and lora.model_dump_json()} {precision} {compiles}"
    if key not in _known:
        _known[key] = _gauged(config, lora, precision, compiles)
    return _known[key]


def _gauged(config: Any, lora: LoRA | None, precision: Precision, compiles: bool) -> Gauge:
    parts = [_part(config, layers, lora) for layers in (1, 2)]
    with computing(precision):
        read = _rate([[_timed(partial(_read, part, tokens)) for tokens in (FEW, MANY)] for part in parts])
        learn = _rate([[_timed(partial(_learn, part, tokens)) for tokens in (FEW, MANY)] for part in parts])
        decode = _decode_rate(parts)
        text = config.get_text_config()
        sizes = int(text.hidden_size), int(text.vocab_size)
        heads, draws = _head_times(*sizes), _draw_rate(*sizes)
        for part in parts if compiles else ():
            room.compiled(beneath(part), PARTED)
        kept = _kept_by_a_layer(parts)
    return Gauge(kept, read, learn, decode, *heads, draws)


def kept_by_a_layer(config: Any, lora: LoRA | None, precision: Precision) -> float:
    """Weigh what one of a model's layers keeps of a token for the gradient, in bytes."""
    with computing(precision):
        return _kept_by_a_layer([_part(config, layers, lora) for layers in (1, 2)])


def _kept_by_a_layer(parts: list[Any]) -> float:
    one, two = (_kept(part, MANY) - _kept(part, FEW) for part in parts)  # what does not grow is the weights'
    return max(two - one, 0) / (MANY - FEW)


def _part(config: Any, layers: int, lora: LoRA | None) -> Any:
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers, text.vocab_size = layers, WORDS
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    model = built(small).to(device()).eval()
    return adapted_model(model, lora, "CAUSAL_LM", None) if lora else model


def _tokens(count: int) -> Tensor:
    rows = max(1, count // 64)
    return torch.ones(rows, count // rows, dtype=torch.long, device=device())


def _hidden(part: Any, tokens: int) -> Tensor:
    return last_hidden(part, input_ids=_tokens(tokens), use_cache=False)


def _read(part: Any, tokens: int) -> None:
    with torch.no_grad():
        _hidden(part, tokens)


def _learn(part: Any, tokens: int) -> None:
    _hidden(part, tokens).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    part.zero_grad(set_to_none=True)


def _kept(part: Any, tokens: int) -> int:
    """Weigh what a pass keeps for the gradient, without the weights as they are."""
    own = {weight.untyped_storage().data_ptr() for weight in (*part.parameters(), *part.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = _hidden(part, tokens)
    weighed = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del hidden
    return weighed


def _timed(act: Callable[[], object]) -> float:
    """Return the median seconds of a few times, after one that does not count; of one time where it takes long."""
    began = time.perf_counter()
    act()
    _wait()
    taken = [time.perf_counter() - began]
    while len(taken) <= TIMES and sum(taken) < LONG:
        began = time.perf_counter()
        act()
        _wait()
        taken.append(time.perf_counter() - began)
    return median(taken[1:] or taken)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _rate(seconds: list[list[float]], units: tuple[int, int] = (FEW, MANY)) -> Rate:
    """Make a rate of the times of one and of two layers, for few and for many units each."""
    few, many = (max(two - one, two / 4) for one, two in zip(*seconds, strict=True))
    each = max(many - few, many / 10) / (units[1] - units[0])
    once = max(few - each * units[0], 0.0)
    return Rate(max(seconds[0][0] - once - each * units[0], 0.0), once, each)


def _decode_rate(parts: list[Any]) -> Rate:
    return _rate([[_decode_time(part, rows) for rows in ROWS] for part in parts], ROWS)


def _decode_time(part: Any, rows: int) -> float:
    """Time a step of answers to short prompts: so many steps less a few of them."""
    prompts, chance = [[0] * 32] * rows, torch.Generator()

    def answer(steps: int) -> object:
        return sample_answers(part, prompts, max_new_tokens=steps, stop=frozenset(), generator=chance.manual_seed(0))

    few, many = (_timed(partial(answer, steps)) for steps in STEPS)
    return max(many - few, many / 2) / (STEPS[1] - STEPS[0])


def _head_times(width: int, vocabulary: int) -> tuple[float, float]:
    words, where = min(vocabulary, HEAD_WORDS), device()
    head = OutputLayer(nn.Linear(width, words, bias=False, device=where))
    hidden = torch.randn(MANY, width, device=where, requires_grad=True)
    targets = torch.zeros(MANY, dtype=torch.long, device=where)

    def learn() -> None:
        chosen_logprobs(hidden, head, targets).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    with torch.no_grad():
        read = _timed(lambda: chosen_logprobs(hidden, head, targets))
    return read / MANY / words, _timed(learn) / MANY / words


@torch.no_grad()
def _draw_rate(width: int, vocabulary: int) -> Rate:
    """Time drawing from a head that no cache of the processor holds: in each step its weights are read anew."""
    words = min(vocabulary, max(HEAD_WORDS, HEAD_BYTES // (4 * width)))
    head = nn.Linear(width, words, bias=False, device=device())

    def seconds(rows: int) -> float:
        hidden, uniform = torch.randn(rows, width, device=device()), torch.rand(rows)
        return _timed(lambda: draw(head(hidden), 1.0, uniform)) / words

    few, many = map(seconds, ROWS)
    each = max(many - few, many / 10) / (ROWS[1] - ROWS[0])
    return Rate(0.0, max(few - each * ROWS[0], 0.0), each)
