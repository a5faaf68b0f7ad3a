"""`trl-grpo`: raise the scores of a policy's own answers, as `grpo` does, by TRL's `GRPOTrainer`.

1. An update is `batch` answers to `batch / answers` prompts, the same ones that `grpo` asks, learnt from in `epochs` of
   `minibatches` optimiser steps. TRL draws the answers and takes the steps.
2. The scores are alignkit's: rewards weighted and added up, clipped, less the penalty of what was cut. TRL gets them
   from one function, under the name `score`.
3. The start stands on the disk of the stage, for TRL opens it by its folder; with LoRA it is the model without it.
4. A checkpoint holds no answers, so the stage is resumed at the beginning of an update.
5. Each process draws answers from a random state of its own, so two processes do not learn what one learns.
6. What is measured on held-out prompts is what `grpo` measures, by the same code.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from alignkit import (
    KL,
    Advice,
    NotFiniteError,
    Policy,
    Prompts,
    Reward,
    SamplingSettings,
    Stage,
    method,
    sampling_needs,
)
from alignkit_trl.passing import BEFORE, PassedOn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from alignkit.kit import Opened, WarningSigns

LOSSES = {"answer": "grpo", "token": "dapo", "fixed": "dr_grpo"}
"""What TRL calls the means that `average` names."""
NAMES = {
    "loss": "loss/policy_avg",
    "learning_rate": "lr",
    "grad_norm": "policy/grad_norm",
    "reward": "objective/scores",
    "reward_std": "objective/scores_std",
    "frac_reward_zero_std": "val/groups_without_signal",
    "completions/mean_length": "length",
    "entropy": "policy/entropy_avg",
    "clip_ratio/region_mean": "policy/clipfrac_avg",
}
"""TRL's names of metrics -> those of `grpo`. Its `kl` keeps its name: it is a token's, `objective/kl` an answer's."""


class TRLGRPOSettings(PassedOn, SamplingSettings):
    """Settings of `trl-grpo`."""

    method: ClassVar[str] = "trl-grpo"
    trainer: ClassVar[str] = "GRPO"
    says: ClassVar[Mapping[str, str]] = {
        "max_steps": "updates",
        "num_train_epochs": "updates",
        "generation_batch_size": "batch",
        "steps_per_generation": "minibatches",
        "num_generations": "answers",
        "num_iterations": "epochs",
        "max_completion_length": "generation.max_new_tokens",
        "temperature": "generation.temperature",
        "beta": "kl.coef",
        "epsilon": "clip",
        "epsilon_high": "clip_high",
        "scale_rewards": "scale",
        "mask_truncated_completions": "generation.unfinished",
        "reward_weights": "rewards",
    }
    fixed: ClassVar[Mapping[str, str]] = {"sync_ref_model": BEFORE}

    answers: PositiveInt = 8
    """Answers to each prompt, which are compared with each other. At least 2."""
    epochs: PositiveInt = 1
    """How often each answer is learnt from."""
    clip: PositiveFloat = 0.2
    """How far a token's probability may move in one update before its gradient stops, as a share."""
    clip_high: PositiveFloat | None = None
    """As `clip`, where the probability rises. Unset: `clip`."""
    scale: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the standard deviation of a prompt's scores, of all scores of an update, or
    nothing."""
    average: Literal["answer", "token", "fixed"] = "token"
    """How losses of tokens become one: TRL's losses `grpo`, `dapo` and `dr_grpo`; `config.loss_type` names others."""

    @model_validator(mode="after")
    def _trl_can_do_it(self) -> Self:
        if self.answers == 1:
            raise ValueError("trl-grpo judges an answer by the others to its prompt; set answers to 2 or more")
        if self.kl != KL(coef=self.kl.coef):
            raise ValueError("TRL's trainer knows kl.coef alone; leave the rest of kl, or take the method grpo")
        if self.snapshots_by == "kl":
            raise ValueError("TRL's trainer spaces snapshots by steps alone; leave snapshots_by out, or take grpo")
        if self.stop == "auto":
            raise ValueError("TRL's trainer cannot be ended early; leave stop out, or take grpo")
        if "loss_type" in self.config and self.average != "token":
            raise ValueError("average and config.loss_type say the same; set one of them")
        return self


@method(
    "trl-grpo",
    advice=Advice(
        "as for grpo, where TRL's trainer is asked for, or an option that it alone has",
        "of the pull to the start it has the weight alone, and two processes do not learn what one learns",
    ),
    needs=sampling_needs,
    results=("reward", "reward/{rewards}", "kl", "length", "eos_rate"),
)
def trl_grpo(
    settings: TRLGRPOSettings, stage: Stage, *, policy: Policy, rewards: tuple[Reward, ...], prompts: Prompts
) -> Policy:
    """Raise the rewards of a policy's own answers, each judged by the others to its prompt, by TRL's trainer."""
    from alignkit.kit import Around, Roles, WarningSigns, open_roles

    opened = open_roles(settings, stage, Roles(policy, rewards, prompts), Around(start=False))
    before, signs = opened.measure(stage.seed), WarningSigns()
    learn(opened, signs, stage)
    if settings.kl.coef and not settings.lora:
        # TRL had a start of its own in memory meanwhile.
        opened, before = opened.beside_start(policy), before and before._replace(kl=[0.0] * len(opened.held_out))
    return opened.finish(stage, signs, before)


def learn(opened: Opened[TRLGRPOSettings], signs: WarningSigns, stage: Stage) -> None:
    """Let TRL's trainer take all updates. Raise NotFiniteError where it can draw no answers."""
    from alignkit.kit import run_trainer
    from alignkit_trl.passing import maker

    settings = opened.settings
    steps = settings.epochs * settings.minibatches
    make = maker(settings, options_of(opened, stage), arguments_of(opened, stage))

    def heed(step: int, metrics: Mapping[str, float]) -> None:
        opened.heed(stage, signs, step // steps, metrics)

    try:
        with start_on_disk(opened, stage):
            run_trainer(make, stage, names=NAMES, commit_every=steps, heed=heed, snapshots=settings.snapshots)
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        problem = "the policy's probabilities are not finite numbers"
        raise NotFiniteError(problem, remedy="lower the learning rate, or look at the policy's weights") from error
    if settings.lora and settings.kl.coef:
        opened.models.policy.delete_adapter("ref")  # TRL's copy of the adapter as it was


@contextmanager
def start_on_disk(opened: Opened[TRLGRPOSettings], stage: Stage) -> Iterator[None]:
    """Write the policy as it was opened where TRL looks for the start of a model without an adapter."""
    from alignkit.kit import parallel

    config, folder = opened.models.policy.config, stage.folder / "start"
    if opened.settings.lora or not opened.settings.kl.coef:
        yield
        return
    parallel.first(lambda: opened.models.policy.save_pretrained(folder))
    was, config.name_or_path = config.name_or_path, str(folder)
    try:
        yield
    finally:
        config.name_or_path = was


def options_of(opened: Opened[TRLGRPOSettings], stage: Stage) -> dict[str, Any]:
    """Return the options of TRL's config class."""
    from alignkit.kit import longest_answer, trainer_options

    settings, new = opened.settings, longest_answer(opened.settings)
    step = settings.model_copy(update={"batch": settings.batch // settings.minibatches})
    longest = new + max(len(prompt.ids) for prompt in opened.prompts)
    options = trainer_options(opened.models.policy, stage, step, settings.updates * settings.batch, longest)
    return options | {
        "logging_steps": settings.epochs * settings.minibatches,
        "steps_per_generation": options["gradient_accumulation_steps"] * settings.minibatches,
        "num_generations": settings.answers,
        "num_iterations": settings.epochs,
        "max_completion_length": new,
        "temperature": settings.generation.temperature,
        "beta": settings.kl.coef,
        "epsilon": settings.clip,
        "epsilon_high": settings.clip_high,
        "scale_rewards": settings.scale,
        "loss_type": LOSSES[settings.average],
        "mask_truncated_completions": settings.generation.unfinished == "mask",
        "disable_dropout": True,
        "shuffle_dataset": False,
    }


def arguments_of(opened: Opened[TRLGRPOSettings], stage: Stage) -> dict[str, Any]:
    """Return what TRL's trainer is called with: the prompts of all updates, with their places among the stage's."""
    from datasets import Dataset

    from alignkit.kit import prompts_of_update
    from alignkit_trl.trainer_texts import verbatim

    settings, prompts, model = opened.settings, opened.prompts, opened.models.policy
    model.generation_config.eos_token_id = sorted(opened.models.stop_tokens)  # until the trainer is done
    updates = (prompts_of_update(settings, prompts, update, stage.seed) for update in range(settings.updates))
    rows = [row for update in updates for row in update]
    plain = all(isinstance(prompt.row["prompt"], str) for prompt in prompts)
    texts = [prompts[row].text for row in rows]
    asked = texts if plain else [[{"role": "user", "content": text}] for text in texts]
    return {
        "model": model,
        "reward_funcs": score_function(opened),
        "train_dataset": Dataset.from_dict({"prompt": asked, "row": rows}),
        "processing_class": opened.tokenizer if plain else verbatim(opened.tokenizer),
    }


def score_function(opened: Opened[TRLGRPOSettings]) -> Callable[..., list[float]]:
    """Return the one reward function that TRL calls: all rewards of the stage, as they are learnt from."""
    import torch

    from alignkit.kit import Rollout, parallel, shaped

    def score(
        *, completion_ids: Sequence[list[int]], row: Sequence[int], log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float]:
        ended = [answer[-1] in opened.models.stop_tokens for answer in completion_ids]
        asked: list[Sequence[int]] = [opened.prompts[place].ids for place in row]
        rollout = Rollout(list(row), asked, list(completion_ids), ended)
        with parallel.alone():  # each process has answers of its own
            scored = opened.score(opened.prompts, rollout)
        finished = torch.tensor(ended)
        log_metric("eos_rate", float(finished.float().mean()))
        for name, part in scored.parts.items():
            log_metric(f"scores/{name}", float(part.mean()))
        values: list[float] = shaped(rollout, scored, opened.settings).tolist()
        return values

    return score
