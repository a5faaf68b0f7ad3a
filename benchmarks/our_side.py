"""Run a job with alignkit's `ppo`: `python our_side.py JOB RESULT`. Benchmarks call it.

The method itself runs, on a stage that keeps nothing, so whatever its settings can say can be measured. To see inside,
three of its functions are wrapped: `train`, whose first argument holds the models (`models.policy` among them),
`sample`, which gives a rollout, and `update`, which takes the optimiser's steps.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from job import Job, Recorder, gold_score, read_job
from transformers import AutoTokenizer

import alignkit
from alignkit.contract.kinds import Policy, Prompts, Reward, RewardModel
from alignkit.contract.reward_function import Score
from alignkit.data.records import Part
from alignkit.methods import ppo
from alignkit.plugins import load_plugins
from alignkit.training import layouts, rollouts
from alignkit.training.opening import open_reward


def main() -> None:
    job, recorder, place = read_job(sys.argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage: Any = BenchmarkStage(job, recorder, folder)
        watch(stage)
        ppo.ppo(
            ppo.PPOSettings.model_validate(settings(job)),
            stage,
            policy=Policy(name="policy", fingerprint="0", path=Path(job.policy)),
            rewards=(RewardModel(name="reward", fingerprint="0", path=Path(job.reward)),),
            prompts=prompts_in(folder, job.prompts),
        )
    versions = {"alignkit": alignkit.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    recorder.write(place, versions)


def settings(job: Job) -> dict[str, Any]:
    """Put the job into words of a recipe."""
    plain = {
        "learning_rate": job.learning_rate,
        "updates": job.updates,
        "batch": job.batch,
        "epochs": job.epochs,
        "minibatches": job.minibatches,
        "precision": "fp32",
        "kl": {"coef": job.kl_coef},
        "critic": {"learning_rate": job.learning_rate},
        "generation": {"max_new_tokens": job.max_new_tokens, "unfinished": "subtract", "penalty": job.penalty},
    }
    return merged(plain, job.ours)


def merged(plain: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another."""
    both = {**plain, **over}
    for key in plain.keys() & over.keys():
        if isinstance(plain[key], Mapping) and isinstance(over[key], Mapping):
            both[key] = merged(plain[key], over[key])
    return both


def prompts_in(folder: Path, texts: Iterable[str]) -> Prompts:
    """Write prompts, none of them held out."""
    import json

    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), "utf-8")
    part = Part.model_validate({"name": "prompts", "paths": (file,), "side": "train"})
    return Prompts(name="prompts", fingerprint="0", path=folder, parts=(part,))


class BenchmarkStage:
    """As much of a stage as `ppo` asks for; it keeps nothing, and ends an update when its figures are logged."""

    name, offline, cache, rank, world, stopping = "benchmark", True, None, 0, 1, False

    def __init__(self, job: Job, recorder: Recorder, folder: Path) -> None:
        self.job, self.recorder, self.folder, self.seed = job, recorder, folder, job.seed
        self.models: Any = None
        self.tokenizer: Any = AutoTokenizer.from_pretrained(job.policy)
        self.length = 0.0

    def gold(self) -> float:
        return gold_score(self.models.policy, self.tokenizer, self.job)

    def log(self, step: int, of: int | None, values: Mapping[str, float]) -> None:
        self.recorder.done(values, self.length, self.gold)

    def leave(self) -> NoReturn:
        raise RuntimeError("nobody asked this stage to stop")

    def result(self, *_: object) -> None: ...

    def sample(self, row: Mapping[str, str | float]) -> None: ...

    def warn(self, problem: str, remedy: str) -> None: ...

    def commit(self, step: int, write: Callable[[Path], None]) -> None: ...

    def latest(self) -> None: ...

    def begin_part(self, part: str, steps: int) -> int:
        return 0

    def open_reward(self, reward: Reward) -> Score:
        return open_reward(reward, load_plugins(()))

    def save_policy(self, model: Any, tokenizer: Any) -> Policy:
        return Policy(name=self.name, fingerprint="0", path=Path(self.job.policy))


def watch(stage: BenchmarkStage) -> None:
    """Begin with training, mark the end of sampling and the start of learning; answer as the job says."""

    def around_train(train: Callable[..., Any]) -> Callable[..., Any]:
        def begun(loop: Any) -> Any:
            stage.models = loop.models
            stage.recorder.begin(stage.gold)
            return train(loop)

        return begun

    def around_sample(sample: Callable[..., Any]) -> Callable[..., Any]:
        def sampled(models: Any, prompts: Any, rows: list[int], *rest: Any, **named: Any) -> Any:
            if stage.job.answers:
                answers = [stage.job.answers[row] for row in rows]
                made = rollouts.Rollout(rows, [prompts[row] for row in rows], answers, [False] * len(rows))
            else:
                made = sample(models, prompts, rows, *rest, **named)
            stage.recorder.answered()
            stage.length = sum(map(len, made.answers)) / len(made.answers)
            return made

        return sampled

    def around_step(step: Callable[..., Any]) -> Callable[..., Any]:
        def learning(*rest: Any, **named: Any) -> Any:
            stage.recorder.learning()
            return step(*rest, **named)

        return learning

    wrap("train", around_train, ppo)
    wrap("sample", around_sample, layouts, ppo)
    wrap("step", around_step, ppo)


def wrap(name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]], *places: Any) -> None:
    """Wrap a function in every module that has it by this name; raises AttributeError where none does."""
    holders = [place for place in places if name in vars(place)]
    if not holders:
        raise AttributeError(f"no {name} in {', '.join(place.__name__ for place in places)}: it has moved")
    wrapped = around(vars(holders[0])[name])
    for place in holders:
        setattr(place, name, wrapped)


if __name__ == "__main__":
    main()
