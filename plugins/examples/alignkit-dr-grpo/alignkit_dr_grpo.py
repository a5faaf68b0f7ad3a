"""Dr. GRPO: GRPO without what favours long answers and easy prompts (Liu et al. 2025, arXiv 2503.20783).

An answer's advantage is its score less its group's mean, not divided by the group's deviation; losses of tokens are
summed and divided by what an answer may have at most, not by what it has.
"""

from typing import ClassVar

from alignkit import GroupSettings, Method, Policy, Prompts, Reward, Stage, group_needs, hookimpl, method


class DrGRPOSettings(GroupSettings):
    """Settings of `dr-grpo`."""

    method: ClassVar[str] = "dr-grpo"


@method("dr-grpo", needs=group_needs, results=("reward", "reward/{rewards}", "kl", "length", "eos_rate"))
def dr_grpo(
    settings: DrGRPOSettings, stage: Stage, *, policy: Policy, rewards: tuple[Reward, ...], prompts: Prompts
) -> Policy:
    """Raise the rewards of a policy's own answers, each judged by the others to its prompt, whatever their length."""
    from alignkit.kit import Around, Roles, losses, open_loop, step_policy

    around = Around(trained_layers=settings.trained_layers, start=settings.needs_start)
    loop, finish = open_loop(settings, stage, Roles(policy, rewards, prompts), around)

    def loss(part, logprobs, count):  # part: so many answers as fit, tables (n, t); count: of the whole step
        """Return the loss of clipped ratios with its pull to the start, and metrics of it."""
        ratio = (logprobs - part.logprobs).masked_fill(~part.mask, 0.0).exp()  # (n, t)
        advantages = part.advantages[:, None]  # (n, 1)
        kept = (advantages * ratio).minimum(advantages * ratio.clamp(1 - settings.clip, 1 + settings.clip))
        pull = 0.0 if part.reference is None else losses.estimate_kl(logprobs, part.reference, "k3")
        total = losses.average(loop.state.kl_coef * pull - kept, part.mask, "fixed", count)
        moved = losses.masked_mean((logprobs - part.logprobs).detach().square() / 2, part.mask, count.tokens)
        return total, {"approxkl": moved, "ratio": losses.masked_mean(ratio.detach(), part.mask, count.tokens)}

    for update in loop.updates():
        rollout = update.sample()
        seen = update.read(rollout, update.score(rollout))
        groups = seen.scores.view(-1, settings.answers)
        advantages = (groups - groups.mean(dim=1, keepdim=True)).flatten()  # (n,)
        update.done({**seen.metrics, **step_policy(update, seen.experience(advantages), loss)})
    return finish()


@hookimpl
def alignkit_methods() -> list[Method]:
    return [dr_grpo]
