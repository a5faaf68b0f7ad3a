"""The loop's inside: one exact optimiser step over any number of micro-batches, and checkpoints between steps.

An objective is `(batch) -> (loss, metrics)`, its loss already divided by the count of the *whole* step, so that the
micro-batches' losses, gradients and metrics simply add up, over the processes that share a step as well.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from alignkit.contract.settings import Optimisation
from alignkit.contract.stage import Stage
from alignkit.errors import NotFiniteError, StageError
from alignkit.training import optimisers, parallel, room, sharding

Batch = TypeVar("Batch")
Objective = Callable[[Batch], tuple[Tensor, Mapping[str, Tensor]]]

SECONDS_BETWEEN_COMMITS = 120.0
SHARE_OF_TIME_FOR_COMMITS = 0.02
STATE_FILE = "state.json"
WEIGHT = "weight"
"""A checkpoint's tensors are called KIND/NAME: the weight of that name, or what the optimiser keeps of it."""


@dataclass
class Learner:
    """A model in training: what steps its weights, and how many steps it took."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    peak: float
    """The learning rate that the schedule scales."""
    settings: Optimisation
    steps: int = 0

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def make_learner(model: nn.Module, learning_rate: float, settings: Optimisation, eps: float = 1e-8) -> Learner:
    """Prepare to train those weights of the model that want a gradient, by AdamW as the machine keeps its states."""
    weights = list(trained_weights(model).values())
    optimizer = optimisers.adamw(weights, learning_rate, settings, eps, room.arranged().states)
    return Learner(model, optimizer, learning_rate, settings)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return those weights of the model that want a gradient, by name."""
    return {name: weight for name, weight in sharding.weights_of(model).items() if weight.requires_grad}


def scheduled(done: int, of: int, settings: Optimisation) -> float:
    """Return the share of the peak learning rate when `done` steps out of `of` are done."""
    warmup = settings.warmup * of
    if done < warmup:
        return (done + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    left = 1 - (done - warmup) / max(of - warmup, 1)
    return left if settings.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def set_learning_rate(learner: Learner, done: int, of: int) -> None:
    """Follow the schedule."""
    for group in learner.optimizer.param_groups:
        group["lr"] = learner.peak * scheduled(done, of, learner.settings)


def take_step(learner: Learner, batches: Iterable[Batch], objective: Objective[Batch]) -> dict[str, float]:
    """Take one optimiser step on the sum of the objective over the batches, and give the sums of its metrics.

    They have `loss` and `grad_norm` (before clipping) among them. Raises NotFiniteError, with the weights as they
    were, where either is not a finite number.
    """
    metrics = take_joint_step({"": learner}, batches, objective)
    return {name.lstrip("/"): value for name, value in metrics.items()}


def take_joint_step(
    learners: Mapping[str, Learner], batches: Iterable[Batch], objective: Objective[Batch]
) -> dict[str, float]:
    """Let several learners take one step each on one objective, as `take_step` does.

    Each clips its own gradient, and its norm is called NAME/grad_norm.
    """
    for learner in learners.values():
        learner.optimizer.zero_grad(set_to_none=True)
    parts: list[Tensor] = []
    for batch, counts in parallel.deal_weighted(list(batches)):
        loss, metrics = objective(batch)
        (loss * counts).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        found = {"loss": loss, **metrics}
        parts.append(counts * torch.stack([value.detach().to(loss.device, torch.float64) for value in found.values()]))
    for learner in learners.values():
        parallel.add_gradients(weight for weight in _weights(learner) if not sharding.is_cut(weight))
    clipped = [_clip(learner) for learner in learners.values()]
    # A GPU is waited for here alone: until now everything was only asked of it.
    sums = parallel.add_metrics(dict(zip(found, torch.stack(parts).sum(dim=0).tolist(), strict=True)))
    norms = {f"{name}/grad_norm": float(norm) for name, norm in zip(learners, clipped, strict=True)}
    if not math.isfinite(sums["loss"] + sum(norms.values())):
        steps, norm = max(learner.steps for learner in learners.values()), max(norms.values())
        raise NotFiniteError(
            f"optimiser step {steps + 1} has loss {sums['loss']} and gradient norm {norm}",
            remedy="lower the learning rate, or look at the rewards and the data of this step",
        )
    for learner in learners.values():
        learner.optimizer.step()
        learner.steps += 1
    return sums | norms


def _weights(learner: Learner) -> list[nn.Parameter]:
    return [weight for group in learner.optimizer.param_groups for weight in group["params"]]


def _clip(learner: Learner) -> Tensor:
    """Shorten the gradient to its greatest length, and give the length that it had ()."""
    return sharding.gathered(nn.utils.clip_grad_norm_(_weights(learner), learner.settings.max_grad_norm))


def minibatches(rows: int, epochs: int, parts: int, chance: torch.Generator) -> Iterator[list[int]]:
    """Yield the rows of each optimiser step: in every epoch a new shuffle of all rows, cut into equal parts."""
    for _ in range(epochs):
        shuffled = torch.randperm(rows, generator=chance)
        yield from (part.tolist() for part in shuffled.chunk(parts))


def mean_metrics(steps: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    """Average the metrics over the steps that were taken, under their public names; nothing where none were."""
    return {
        names.get(key, f"policy/{key}_avg"): sum(step[key] for step in steps) / len(steps)
        for key in (steps[0] if steps else ())
    }


def save_learners(folder: Path, learners: Mapping[str, Learner], facts: Mapping[str, object]) -> None:
    """Write a checkpoint of a method's own loop: its learners as `NAME.safetensors`, other facts in `state.json`.

    All processes call it, each for its part.
    """
    for name, learner in learners.items():
        save_learner(learner, folder / f"{name}.safetensors")
    if parallel.rank() == 0:
        (folder / STATE_FILE).write_text(json.dumps(facts) + "\n", "utf-8")


def load_learners(folder: Path, learners: Mapping[str, Learner]) -> dict[str, Any]:
    """Put the learners into the state that `save_learners` wrote, and give the facts.

    Raises StageError where a file cannot be read, or does not fit its learner's model.
    """
    for name, learner in learners.items():
        load_learner(learner, folder / f"{name}.safetensors")
    return read_state(folder)


def read_state(folder: Path) -> dict[str, Any]:
    """Return the facts that `save_learners` wrote. Raise StageError where they cannot be read."""
    try:
        facts: dict[str, Any] = json.loads((folder / STATE_FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _unusable(folder / STATE_FILE, str(error)) from error
    return facts


def save_learner(learner: Learner, file: Path) -> None:
    """Write what training has changed as safetensors: trained weights, the optimiser's state, the count of steps.

    The rest of the model is as it was opened, and left out. Of weights that are cut up each process writes its parts
    into a file of its own; else the first process writes all.
    """
    cut = any(map(sharding.is_cut, _weights(learner)))
    if not cut and parallel.rank():
        return
    tensors: dict[str, Tensor] = {}
    for name, weight in trained_weights(learner.model).items():
        kept = {WEIGHT: weight.detach(), **optimisers.state_of(learner.optimizer, weight)}
        tensors |= {f"{kind}/{name}": sharding.own_part(tensor).contiguous() for kind, tensor in kept.items()}
    piece = file.with_suffix(f".{parallel.rank() + 1}-of-{parallel.world()}{file.suffix}") if cut else file
    save_file(tensors, piece, metadata={"steps": str(learner.steps)})


def load_learner(learner: Learner, file: Path) -> None:
    """Put a learner, its model included, into exactly the state that `save_learner` wrote in any number of processes.

    The learning rate is not part of it: the schedule gives it. Raises StageError where the file cannot be read, or
    holds other weights than the model trains, or states of the optimiser that this machine keeps otherwise.
    """
    weights = trained_weights(learner.model)
    found, steps = _read(file, weights)
    _check_states(found, file)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(found[name].pop(WEIGHT))
    optimisers.restore(learner.optimizer, {weight: found[name] for name, weight in weights.items()})
    learner.steps = steps


def save_weights(learner: Learner, file: Path) -> None:
    """Let the first process write the trained weights alone, as `load_learner` reads them; all processes call it.

    At any moment the file is whole or not there.
    """
    tensors: dict[str, Tensor] = {}
    for name, weight in trained_weights(learner.model).items():
        tensor = sharding.gathered(weight.detach())
        tensors |= {f"{WEIGHT}/{name}": tensor.contiguous().cpu()} if parallel.rank() == 0 else {}
    if parallel.rank():
        return
    staged = file.with_suffix(".partial")
    save_file(tensors, staged, metadata={"steps": str(learner.steps)})
    staged.replace(file)


def _read(file: Path, weights: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], int]:
    """Return what is kept of each weight, by name and kind, cut up as the weight is, and the count of steps."""
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with ExitStack() as opened:
            pieces = [opened.enter_context(safe_open(piece, framework="pt")) for piece in _pieces(file)]
            keys = list(pieces[0].keys())
            _check_fit({key: _shape(pieces, key) for key in keys}, weights, file)
            for key in keys:
                kind, _, name = key.partition("/")
                found.setdefault(name, {})[kind] = _joined(pieces, key, weights[name])
            return found, int(pieces[0].metadata()["steps"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise _unusable(file, str(error)) from error


def _pieces(file: Path) -> list[Path]:
    """Return the files that a learner lies in: this one, or one of each process that kept a part of it, in order."""
    found = sorted(file.parent.glob(f"{file.stem}.*-of-*{file.suffix}"), key=_place)
    if found and [_place(piece) for piece in found] != list(range(1, int(found[0].stem.rpartition("-")[2]) + 1)):
        raise FileNotFoundError(f"of its parts only {', '.join(piece.name for piece in found)} are there")
    return found or [file]


def _place(piece: Path) -> int:
    return int(piece.stem.rpartition(".")[2].partition("-")[0])


def _shape(pieces: Sequence[Any], key: str) -> tuple[int, ...]:
    """Return the shape of a tensor whose rows are parted among files; a number is in each."""
    shapes = [piece.get_slice(key).get_shape() for piece in pieces]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()


def _joined(pieces: Sequence[Any], key: str, weight: Tensor) -> Tensor:
    """Read this process's rows of a tensor that is cut up as the weight is that it belongs to; a number is whole.

    It is a copy: what is read is a view of the file, which may be gone tomorrow.
    """
    tensors: list[Tensor] = [piece.get_tensor(key) for piece in pieces]
    if not tensors[0].dim():
        return tensors[0].clone()
    if not sharding.is_cut(weight):
        return torch.cat(tensors)
    own, parts, start = sharding.own_rows(weight), [], 0
    for tensor in tensors:
        parts.append(tensor[max(0, own.start - start) : max(0, own.stop - start)])
        start += len(tensor)
    return sharding.joined_like(torch.cat(parts), weight)


def _check_fit(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], file: Path) -> None:
    names = {key.partition("/")[2] for key in shapes}
    theirs = {name: str(shapes[f"{WEIGHT}/{name}"]) for name in names if f"{WEIGHT}/{name}" in shapes}
    ours = {name: str(tuple(weight.shape)) for name, weight in weights.items()}
    for name in sorted(names | ours.keys()):
        if name not in ours or theirs.get(name) != ours[name]:
            there, here = theirs.get(name, "missing"), ours.get(name, "not trained")
            raise _unusable(file, f"weight {name} is {there} in it, and {here} in the model")


def _check_states(found: Mapping[str, Mapping[str, Tensor]], file: Path) -> None:
    for state in found.values():
        if state.keys() - {WEIGHT}:
            optimisers.check_same(optimisers.kept_in(state), room.arranged().states, file.parent)


def _unusable(file: Path, reason: str) -> StageError:
    remedy = f"remove the folder {file.parent}, and the stage goes on from an older checkpoint or starts over"
    return StageError(f"the checkpoint cannot be used ({reason})", str(file), remedy)


@dataclass
class CommitTimer:
    """Says when the next checkpoint is due: two minutes after the last, later where commits would cost over 2 %."""

    committed: float = field(default_factory=time.monotonic)
    cost: float = 0.0
    """Seconds that the last commit took."""

    @property
    def due(self) -> bool:
        wait = max(SECONDS_BETWEEN_COMMITS, self.cost / SHARE_OF_TIME_FOR_COMMITS)
        return time.monotonic() - self.committed > wait

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time a commit, after which the wait for the next begins."""
        began = time.monotonic()
        yield
        self.committed = time.monotonic()
        self.cost = self.committed - began


def commit_or_leave(stage: Stage, step: int, write: Callable[[Path], None], timer: CommitTimer) -> None:
    """Commit after a step where that is due; where the stage must stop, commit and leave it (this does not return)."""
    stopping = stage.stopping
    if stopping or parallel.agreed(timer.due):
        with timer.timing():
            stage.commit(step, write)
    if stopping:
        stage.leave()
