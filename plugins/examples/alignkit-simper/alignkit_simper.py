"""SimPER: raise the likelihood by token of the chosen answers, lower that of the rejected ones (arXiv 2502.00883)."""

from pydantic import PositiveFloat

from alignkit import Method, Policy, Preferences, RowSettings, Stage, hookimpl, method, pair_needs


class SimPERSettings(RowSettings):
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate."""
    rejected_weight: PositiveFloat = 1.0
    """Weight of the rejected answers; 1 in the paper."""


@method("simper", needs=pair_needs, results=("accuracy",))
def simper(settings: SimPERSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Raise the likelihood of the chosen answers and lower that of the rejected ones."""
    from alignkit.kit import load_policy, map_pairs, pair_logprobs, read_pairs, train_pairs

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    train, held_out = read_pairs(pairs, model, tokenizer, settings, stage)

    def loss(part):  # part: so many pairs as fit; gives a loss for each (n,), and metrics
        tables = pair_logprobs(model, part)  # log-probabilities of answer tokens, twice (n, t)
        lengths = tables[0].new_tensor([[len(pair.chosen.answer), len(pair.rejected.answer)] for pair in part])
        chosen, rejected = (table.sum(dim=1) / lengths[:, side] for side, table in enumerate(tables))
        return settings.rejected_weight * rejected.exp() - chosen.exp(), {"lead": (chosen - rejected).detach()}

    train_pairs(model, train, loss, settings, stage)
    if held_out:
        right = map_pairs(model, held_out, lambda part: (loss(part)[1]["lead"] > 0).float(), settings)
        stage.result("accuracy", None, right.mean().item(), floor=0.5, rows=len(held_out))
    return stage.save_policy(model, tokenizer)


@hookimpl
def alignkit_methods() -> list[Method]:
    return [simper]
