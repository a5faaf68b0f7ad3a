"""What a stage will need, before it runs: peak memory, time and disk, from the sizes of its models and its rows.

Memory is what all models hold (weights, gradients, AdamW's two moments), what one pass keeps for the gradient, and
logits. Constants are fitted to measured stages (benchmarks/estimates.py); none is a safety margin.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Literal, NamedTuple

import torch

from alignkit.contract.needs import EvaluationNeeds, Needs, PackedNeeds, PairNeeds, SamplingNeeds, TrainerNeeds
from alignkit.errors import PluginError
from alignkit.estimate.host import host_memory
from alignkit.estimate.sizes import Sizes
from alignkit.estimate.timing import Gauge
from alignkit.training import output_layer, packing, room, trainers
from alignkit.training.answer_pool import PART
from alignkit.training.arithmetic import arithmetic, device
from alignkit.training.lengths import UNSET_ANSWER
from alignkit.training.optimisers import STATE_BYTES
from alignkit.training.step import SECONDS_BETWEEN_COMMITS

MIB = 2**20
FULL, ADAPTED, ON_GPU = 1.35, 2.16, 1.15
"""What passes take over what they keep: on a processor freed memory between kept tensors is lost to the allocator; on
a GPU gradients come into being while all is kept."""
OTHER = 12 * MIB
"""What any stage takes besides: rows, tokens, and the thousand small things that libraries make."""
TRL_TABLES = 4.0
"""Tables of logits that a pass of TRL's trainers holds at once."""
SMALL_TABLES = 12.0
"""So many take their room on a processor where one is smaller than KEPT_BY_THE_ALLOCATOR: freed ones stay in part."""
KEPT_BY_THE_ALLOCATOR = 32 * MIB
"""The largest piece of memory, freed, that glibc may keep for later (M_MMAP_THRESHOLD_MAX)."""
CHUNKS = 5
"""Chunks of logits that reading answers holds at once."""
TWICE = 0.45
"""Share of the policy's weights that a stage which samples holds twice for a while, as measured."""
SHOWN_TOKENS = 64
"""Tokens, at most, of answers that are shown."""
TRL_START = 0.25
"""Seconds that a trainer of TRL takes to be made."""
READS_START = 0.5
"""Seconds to prepare reading by the start."""
ADAM = 4e-9
"""Seconds to step one weight, its gradient's norm included."""
STEP = 0.01
"""Seconds that a step takes besides."""
START = 0.1
"""Seconds that any stage takes to start and to end."""
OPEN = 0.05
"""Seconds to open a further model, its weights apart, and to try whether it reads packed rows."""
MOST_CHECKPOINTS = 3
"""That lie on disk at once: two are kept while a third is written."""
DISK_SPEED = 5e8
"""Bytes a second, written or read and checked."""


class Facts(NamedTuple):
    """What is known of a stage's rows; lengths are tokens by its model's tokenizer."""

    rows: int
    """Learnt from."""
    held_out: int
    prompt: float
    """Mean length of a prompt, of all text where rows have no answers."""
    answer: float
    """Mean length of an answer; of both of a pair, each."""
    longest: int
    """Of a prompt with its answer."""


class Held(NamedTuple):
    """A model that a stage holds."""

    sizes: Sizes
    trains: bool
    bytes: float = 4
    """Of a frozen weight; trained ones are fp32."""


class Pass(NamedTuple):
    """The largest that goes through a model at once with gradient."""

    tokens: float
    tables: float = 0.0
    """Tables of logits that exist at once, (tokens, vocabulary) in fp32."""


@dataclass(frozen=True)
class Need:
    """What a stage needs: bytes over what the libraries take, seconds, bytes on disk."""

    parts: Mapping[str, float]
    """Bytes of memory by what they are for."""
    seconds: float
    """Of the whole stage."""
    stepping: float
    """Of them in optimiser steps or updates, the rest being what a stage does once."""
    disk: float
    steps: float
    """Optimiser steps, or updates, or 1."""
    prompt: float
    """Tokens of a prompt and of an answer, in the mean, that the estimate assumes."""
    answer: float

    @property
    def memory(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Job:
    """A stage, as its estimate sees it."""

    needs: Needs
    facts: Facts
    policy: Sizes
    gauge: Gauge
    others: Sequence[Held] = ()
    """Reward models."""
    policies: int = 1
    """That are given to be measured."""
    whole: bool = False
    """An adapter is merged and saved with its base, which lies in no folder."""
    apart: bool = False
    """Another policy than the start is what the policy is compared with: a model of its own, whatever learns."""
    beside: float = 0.0
    """Bytes of the files that an artifact has beside its weights, the tokenizer's above all."""
    quantised: float | None = None
    """Bytes that a weight of the policy takes, where it is quantised."""
    parts: int = 1
    """Processes that weights, gradients and the optimiser's state are cut up among."""
    how: room.Arrangement = room.AS_IT_IS
    """In which models learn."""

    @property
    def trained(self) -> Held:
        """The policy; where an adapter learns, its own weights lie there as they are computed with."""
        return Held(self.policy, trains=True, bytes=self.quantised or arithmetic(self.needs.precision).itemsize)

    @property
    def lora(self) -> bool:
        return bool(self.needs.lora)

    def body(self, tokens: float, passes: float, *, learn: bool) -> float:
        """Return the seconds of all layers for so many tokens in so many passes."""
        rate = self.gauge.learn if learn else self.gauge.read
        return rate.of(self.policy.layers, tokens, passes)

    def head(self, tokens: float, *, learn: bool) -> float:
        return tokens * self.policy.vocabulary * (self.gauge.head_learn if learn else self.gauge.head_read)

    def sampling(self, rows: float, prompt: float, longest: float, mean: float | None = None) -> float:
        """Return the seconds in which so many rows are answered at once; each leaves when its answer has ended."""
        if not rows:
            return 0.0
        tokens = rows * (longest if mean is None else mean)
        steps = self.gauge.decode.of(self.policy.layers, tokens, longest)
        draws = self.gauge.draw.of(self.policy.vocabulary, tokens, longest)
        return self.body(rows * prompt, 1, learn=False) + steps + draws


@singledispatch
def estimated(needs: Needs, job: Job) -> Need:
    """Return what a stage needs whose method does this. Raise PluginError where no kind of needs is known."""
    problem = f"needs of the kind {type(needs).__name__} cannot be estimated"
    raise PluginError(problem, remedy="return what trainer_needs, pair_needs or sampling_needs returns")


@estimated.register
def through_trainer(needs: TrainerNeeds, job: Job) -> Need:
    """Padded rows through TRL's trainer, each read besides by the policy and by its start."""
    facts, sizes, sides = job.facts, job.policy, 2 if needs.scores else 1
    mean, longest = sides * (facts.prompt + facts.answer), sides * facts.longest
    tokens_in_a_pass = trainers.tokens_in_a_pass(sizes.layers, sizes.width)
    micro = needs.rows_at_once or trainers.micro_batch(needs.batch, int(longest), tokens_in_a_pass)
    steps = math.ceil(needs.epochs * facts.rows / needs.batch)
    held = [job.trained]
    largest = Pass(min(micro, facts.rows) * longest, 0.0 if needs.scores else TRL_TABLES)
    parts = _training(job, held, largest, trainer=True)
    tokens, passes = needs.epochs * facts.rows * mean, steps * needs.batch / micro
    measured = min(facts.held_out, needs.measured) * mean
    stepping = job.body(tokens, passes, learn=True) + _stepping(sizes.trained, steps)
    once = TRL_START + job.body(2 * measured, 2 + 2 * measured / 4096, learn=False)
    if not needs.scores:
        stepping += job.head(tokens, learn=True)
        once += job.head(2 * measured, learn=False)
    need = _need(job, parts, Times(stepping, once, steps), [sizes])
    if not needs.reads:
        return need
    rows = facts.rows * max(1.0, needs.epochs)
    tokens, passes = rows * mean, rows / (needs.rows_at_once or 1)
    more = job.body(needs.reads * tokens, needs.reads * passes, learn=False)
    more += job.head(needs.reads * tokens, learn=False)
    start = {"the start": 4.0 * sizes.weights} if job.lora else {}
    return replace(need, parts={**parts, **start}, seconds=need.seconds + READS_START + more)


@estimated.register
def packed(needs: PackedNeeds, job: Job) -> Need:
    """`train_rows` of packed rows, measured before and after; a few held-out prompts may be answered at the end."""
    facts, sizes, sides = job.facts, job.policy, 2 if needs.scores else 1
    each = facts.prompt + sides * facts.answer
    learnt = 0.0 if needs.scores else facts.answer or facts.prompt
    longest = sides * facts.longest
    held = [job.trained]
    space = _space(job, held)
    largest = max(min(space.tokens, min(needs.batch, facts.rows) * longest), longest)
    steps = math.ceil(needs.epochs * math.ceil(facts.rows / needs.batch))
    tokens = needs.epochs * facts.rows * each
    passes = max(steps, tokens / space.tokens)
    parts = _training(job, held, Pass(largest), space)
    measured = min(facts.held_out, needs.measured) * (sides * facts.prompt + sides * facts.answer)
    stepping = job.body(tokens, passes, learn=True) + _stepping(sizes.trained, steps)
    once = job.body(2 * measured, 2 + 2 * measured / 4096, learn=False)
    if learnt:
        parts["logits"] = _kept_logits(sizes, learnt / each * largest)
        stepping += job.head(tokens * learnt / each, learn=True)
        once += job.head(2 * measured, learn=False)
    need = _need(job, parts, Times(stepping, once, steps), [sizes])
    shown = job.sampling(min(needs.shown, facts.held_out), facts.prompt, SHOWN_TOKENS)
    return replace(need, seconds=need.seconds + shown)


@estimated.register
def pairs(needs: PairNeeds, job: Job) -> Need:
    """`train_pairs`: packed pairs, or single answers, and what of them is read besides."""
    facts, sizes, sides = job.facts, job.policy, 1 if needs.apart else 2
    answered = sides * facts.answer
    each = facts.prompt + answered
    held = [job.trained]
    space = _space(job, held)
    largest = max(min(space.tokens, needs.batch * each, facts.rows * each), each)
    steps = math.ceil(needs.epochs * math.ceil(facts.rows / needs.batch))
    passes = max(steps, needs.epochs * facts.rows * each / space.tokens)
    parts = _training(job, held, Pass(largest), space)
    parts["logits"] = _kept_logits(sizes, answered / each * largest)
    held_out = min(facts.held_out, needs.measured)
    read = (needs.reads * facts.rows + 2 * held_out) + min(needs.batch, facts.rows)
    learnt = needs.epochs * facts.rows
    stepping = (
        job.body(learnt * each, passes, learn=True)
        + job.head(learnt * answered, learn=True)
        + _stepping(sizes.trained, steps)
    )
    once = job.body(read * each, 1 + read * each / space.tokens, learn=False)
    once += job.head(read * answered, learn=False)
    return _need(job, parts, Times(stepping, once, steps), [sizes])


@estimated.register
def updates(needs: SamplingNeeds, job: Job) -> Need:
    """`open_loop`: sample, read by all models, learn in epochs, and measure before and after."""
    facts, sizes = job.facts, job.policy
    frozen = arithmetic(needs.precision).itemsize
    cut = needs.upper_layers is not None
    held = [job.trained]
    if needs.critic == "separate":
        held.append(Held(sizes, trains=True, bytes=frozen))
    if job.apart or (not job.lora and not cut and needs.start):
        held.append(Held(sizes, trains=False, bytes=frozen))
    if cut:
        held.append(Held(sizes._replace(weights=sizes.trained), trains=False, bytes=frozen))
    longest = facts.longest
    new = needs.new_tokens or UNSET_ANSWER
    answer = min(facts.answer or new, new)
    small = needs.batch // needs.minibatches
    mean = facts.prompt / _shared(needs, small) + answer
    space = _space(job, held)
    shared = facts.prompt * (1 - 1 / _shared(needs, small))  # what answers to one prompt do not read again
    largest = max(min(space.tokens, small * (longest - shared)), longest)
    critics = 2 if needs.critic == "separate" else 1
    upper = min(1.0, needs.upper_layers / sizes.layers) if needs.upper_layers else 1.0
    parts = _training(job, held, Pass(largest * upper), space)
    gathered = float(frozen * sizes.weights) if job.parts > 1 else 0.0  # all of the policy, while it answers
    if device().type == "cuda":
        parts["logits"] = _kept_logits(sizes, small * new)
        # Keys and values are copied as they grow; they are gone when there are activations.
        cached = 2 * min(room.CACHE * machine_memory(), float(frozen * sizes.cache * needs.batch * longest))
        parts["activations"] = max(parts["activations"], cached + gathered)
    else:
        parts["logits"] = CHUNKS * 4 * min(output_layer.LOGITS_IN_A_CHUNK, needs.batch * new * sizes.vocabulary)
        parts["weights"] += TWICE * frozen * sizes.weights
        parts["cache"] = 4.0 * sizes.cache * needs.batch * longest * 1.5 + gathered
    read_by = 1 + (1 if job.lora or len(held) > critics else 0) + (critics - 1)
    steps = needs.updates * needs.epochs * needs.minibatches
    tokens = needs.updates * needs.batch * mean
    read_passes = needs.updates * max(1.0, needs.batch * mean / space.tokens)
    learn_passes = max(steps, needs.epochs * tokens / space.tokens)
    answered = needs.updates * needs.batch * answer
    measured = min(facts.held_out, needs.measured)
    stepping = (
        needs.updates * job.sampling(needs.batch, facts.prompt, new, answer)
        + read_by * job.body(tokens, read_passes, learn=False)
        + 2 * job.head(answered, learn=False)
        + critics * upper * job.body(needs.epochs * tokens, learn_passes, learn=True)
        + job.head(needs.epochs * answered, learn=True)
        + critics * _stepping(sizes.trained, steps)
        + len(job.others) * job.body(tokens, read_passes, learn=False)
    )
    once = (
        2 * job.sampling(measured, facts.prompt, new, answer)
        + (2 * 2 + 2 * len(job.others)) * job.body(measured * (facts.prompt + answer), 1, learn=False)
        + 4 * job.head(measured * answer, learn=False)
    )
    return _need(job, parts, Times(stepping, once, needs.updates), [sizes] * critics)


@estimated.register
def evaluation(needs: EvaluationNeeds, job: Job) -> Need:
    """`evaluate`: each policy answers the same prompts."""
    facts, sizes = job.facts, job.policy
    asked, new = min(needs.prompts, facts.held_out), needs.new_tokens or UNSET_ANSWER
    rows = asked * needs.answers
    together = min(rows, max(asked, PART))
    bytes_each = arithmetic(needs.precision).itemsize
    policies = job.policies
    drawn = together * sizes.vocabulary
    answered = min(packing.TOKENS_IN_A_PACK, together * new)
    compared = policies > 1 and needs.answers == 1
    read = min(output_layer.LOGITS_IN_A_CHUNK, answered * sizes.vocabulary) if compared else 0
    parts = {
        "weights": float(bytes_each * sizes.weights + sum(one.bytes * one.sizes.weights for one in job.others)),
        "cache": 4.0 * sizes.cache * together * facts.longest * 1.5,
        "logits": 4.0 * 3 * max(drawn, read),
        "other": float(OTHER),
    }
    answer = min(facts.answer or new, new)
    tokens = rows * (facts.prompt + answer)
    times = policies + needs.pool / needs.prompts
    seconds = times * job.sampling(rows, facts.prompt, new, answer)
    passes = max(1.0, tokens / packing.TOKENS_IN_A_PACK)
    seconds += len(job.others) * times * job.body(tokens, passes, learn=False)
    if compared:  # all but the first are read by themselves and by the first, which is loaded again
        seconds += 2 * (policies - 1) * (job.body(tokens, passes, learn=False) + job.head(rows * answer, learn=False))
        seconds += policies * (OPEN + 4.0 * sizes.weights / DISK_SPEED)
    return _need(job, parts, Times(0.0, seconds, 1), [])


def _shared(needs: SamplingNeeds, rows: int) -> float:
    """Return how many answers of a minibatch share a prompt's computation."""
    return float(max(1, min(needs.answers, rows)))


class Space(NamedTuple):
    """What one pass with gradient has room for."""

    tokens: int
    kept: float
    """Bytes that each of them keeps."""


def _space(job: Job, held: Sequence[Held]) -> Space:
    """Return the size of a pass of our own loops: fixed on a processor, by the memory on a GPU (`training.room`)."""
    if device().type != "cuda":
        again = job.how.again is True
        return Space(packing.TOKENS_IN_A_PACK, _kept_each(job.policy, job.gauge.kept)[again])
    taken = sum(_held(job, held).values()) + room.LOGITS * output_layer.logits_in_a_chunk(device())
    return space_on_card(job.policy, job.gauge.kept, machine_memory(), taken, job.how.again)


def space_on_card(
    policy: Sizes, kept: float, card: float, taken: float, again: bool | Literal["auto"] = "auto"
) -> Space:
    """Return the size of a pass beside what is taken, in bytes; `kept` is what a layer keeps of a token.

    Layers that are compiled keep less, and are computed again by the same rule: where few tokens fit.
    """
    found = [Space(room.fitting(card, taken, each), each) for each in _kept_each(policy, kept)]
    return found[found[0].tokens < room.ENOUGH if again == "auto" else again]


def _kept_each(policy: Sizes, kept: float) -> tuple[float, float]:
    """Return what a token keeps in all layers; and where they are computed again, from their inputs."""
    return kept * policy.layers, kept + arithmetic("auto").itemsize * policy.width * policy.layers


def _held(job: Job, held: Sequence[Held]) -> dict[str, float]:
    """Add up what each process holds, whatever a pass does; on a GPU also weights rounded to bf16 for a pass."""
    sizes = job.policy
    trained = sum(one.sizes.trained for one in held if one.trains)
    weights = sum(one.sizes.weights * (4 if one.trains and not job.lora else one.bytes) for one in held)
    weights += sum(one.bytes * one.sizes.weights for one in job.others)
    rounds = device().type == "cuda" and not job.lora and arithmetic(job.needs.precision).itemsize < 4
    whole = {
        "weights": float(weights),
        "gradients": 4.0 * trained,
        "optimiser": STATE_BYTES[job.how.states] * trained,
        "rounded": 2.0 * sizes.weights if rounds else 0.0,
    }
    return {part: size / job.parts for part, size in whole.items()}


def _training(
    job: Job, held: Sequence[Held], largest: Pass, space: Space | None = None, *, trainer: bool = False
) -> dict[str, float]:
    """Add up what training holds; a `trainer` of TRL's computes activations again on a GPU."""
    sizes = job.policy
    gpu = device().type == "cuda"
    factor = ON_GPU if gpu else (ADAPTED if job.lora else FULL)
    table = 4.0 * largest.tokens * sizes.vocabulary
    many = largest.tables and not gpu and table < KEPT_BY_THE_ALLOCATOR
    tables = SMALL_TABLES if many else largest.tables
    layers = sizes.layers
    kept = space.kept if space else job.gauge.kept * layers
    if gpu and trainer:
        kept = 2.0 * sizes.width * layers + job.gauge.kept
    return {
        **_held(job, held),
        "activations": factor * kept * largest.tokens,
        "logits": tables * table,
        "other": 0.0 if gpu else float(OTHER),
    }


def _kept_logits(sizes: Sizes, tokens: float) -> float:
    """Weigh the logits of our own head, which are computed again where they are many."""
    if device().type == "cuda":
        return room.LOGITS * min(tokens * sizes.vocabulary, output_layer.logits_in_a_chunk(device()))
    return 4.0 * min(tokens * sizes.vocabulary, output_layer.LOGITS_KEPT) + 4.0 * output_layer.LOGITS_IN_A_CHUNK * min(
        1.0, tokens * sizes.vocabulary / output_layer.LOGITS_IN_A_CHUNK
    )


def _stepping(trained: int, steps: float) -> float:
    return steps * (STEP + ADAM * trained)


class Times(NamedTuple):
    """Seconds in steps, and of what a stage does once; and how many steps."""

    stepping: float
    once: float
    steps: float


def _need(job: Job, parts: dict[str, float], times: Times, learners: Sequence[Sizes]) -> Need:
    """Add what loading and saving takes; a checkpoint is written beside those that are kept."""
    stepping, once, steps = times
    trained, weights = job.policy.trained, job.policy.weights
    saved = (weights - trained if job.whole else trained) if job.lora else weights
    artifact = (1 + job.needs.snapshots) * (4.0 * saved + job.beside) if learners else 0.0
    moved = 4.0 * job.policy.weights + artifact
    seconds = START + stepping + once + moved / DISK_SPEED
    written = min(MOST_CHECKPOINTS, int(seconds / SECONDS_BETWEEN_COMMITS))
    checkpoints = written * sum((4 + STATE_BYTES[job.how.states]) * sizes.trained for sizes in learners)
    return Need(parts, seconds, stepping, artifact + checkpoints, steps, job.facts.prompt, job.facts.answer)


def machine_memory() -> int:
    """Return how much memory this machine has for a stage, in bytes: its GPU's where it has one."""
    if device().type == "cuda":
        return int(torch.cuda.get_device_properties(device()).total_memory)
    return host_memory()
