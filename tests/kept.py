"""Methods that tell what a process keeps of a learner, and what it finds in a checkpoint."""

import hashlib
import json
from pathlib import Path
from typing import Any

from alignkit import Policy, Preferences, RowSettings, Stage, method


class KeptSettings(RowSettings):
    """Settings of `kept`."""

    folder: str = ""
    """Where a checkpoint is read from; empty: two steps are taken."""
    again: bool = False
    """Layers are computed again for the gradient."""


@method("kept")
def kept(settings: KeptSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Train or read a learner, and write down what it holds."""
    from alignkit.kit import load_policy, parallel, read_pairs
    from alignkit.training.room import compute_again
    from alignkit.training.step import load_learners, make_learner

    if parallel.mesh() and stage.rank:
        policy = policy.model_copy(update={"path": Path("nowhere")})
    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    if settings.again:
        compute_again(model)
    learner = make_learner(model.eval(), settings.learning_rate, settings.optimisation)
    if settings.folder:
        load_learners(Path(settings.folder), {"policy": learner})
    else:
        take_steps(learner, read_pairs(pairs, model, tokenizer, settings, stage).train[:4])
    write_down(learner, stage)
    return stage.save_policy(model, tokenizer)


def take_steps(learner: Any, pairs: Any) -> None:
    from alignkit.kit import pair_logprobs
    from alignkit.training.step import take_step

    for _ in range(2):
        take_step(learner, [[pair] for pair in pairs], lambda part: (-pair_logprobs(learner.model, part)[0].sum(), {}))


def write_down(learner: Any, stage: Stage) -> None:
    """Commit a checkpoint; note a hash of the learner's whole state, and the bytes that this process keeps of it."""
    from alignkit.training.sharding import gathered, own_part
    from alignkit.training.step import save_learners, trained_weights

    stage.commit(1, lambda folder: save_learners(folder, {"policy": learner}, {}))
    digest, own = hashlib.sha256(str(learner.steps).encode()), 0
    for name, weight in sorted(trained_weights(learner.model).items()):
        for kind, tensor in sorted({"weight": weight.detach(), **learner.optimizer.state[weight]}.items()):
            digest.update(f"{kind} {name}".encode() + gathered(tensor).contiguous().numpy().tobytes())
            own += own_part(tensor).untyped_storage().nbytes()
    (stage.cache / f"kept-{stage.rank}.json").write_text(json.dumps({"state": digest.hexdigest(), "bytes": own}))


@method("spoilt")
def spoilt(settings: RowSettings, stage: Stage, *, policy: Policy) -> Policy:
    """Fail to write a checkpoint in the second process."""

    def write(folder: Path) -> None:
        if stage.rank:
            raise OSError(f"no space for {folder.name}")

    stage.commit(1, write)
    raise AssertionError("nobody was told")


@method("read-alone")
def read_alone(settings: RowSettings, stage: Stage, *, policy: Policy) -> Policy:
    """Ask a policy in one process of several."""
    from alignkit.kit import load_policy, parallel, sample_answers

    model, tokenizer = load_policy(policy, precision=settings.precision)
    parallel.first(lambda: sample_answers(model, tokenizer, [{"prompt": "hello"}]))
    return stage.save_policy(model, tokenizer)
