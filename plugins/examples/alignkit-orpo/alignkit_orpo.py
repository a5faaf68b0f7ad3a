"""ORPO: learn the chosen answers and push the rejected ones away, in one stage (Hong et al. 2024, arXiv 2403.07691)."""

from pydantic import PositiveFloat

from alignkit import Method, Policy, Preferences, RowSettings, Stage, hookimpl, method, pair_needs


class ORPOSettings(RowSettings):
    learning_rate: PositiveFloat = 8e-6
    """Peak learning rate."""
    beta: PositiveFloat = 0.1
    """Weight of the odds ratio beside the likelihood of the chosen answer."""


@method("orpo", needs=pair_needs, results=("accuracy",))
def orpo(settings: ORPOSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Learn the chosen answers and push the rejected ones away, in one stage."""
    from alignkit.kit import load_policy, map_pairs, pair_logprobs, read_pairs, train_pairs

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    train, held_out = read_pairs(pairs, model, tokenizer, settings, stage)

    def loss(part):  # part: so many pairs as fit; gives a loss for each (n,), and metrics
        tables = pair_logprobs(model, part)  # log-probabilities of answer tokens, twice (n, t)
        lengths = tables[0].new_tensor([[len(pair.chosen.answer), len(pair.rejected.answer)] for pair in part])
        chosen, rejected = (table.sum(dim=1) / lengths[:, side] for side, table in enumerate(tables))
        odds = chosen - rejected - (-chosen.expm1()).log() + (-rejected.expm1()).log()
        return -chosen - settings.beta * odds.sigmoid().log(), {"odds": odds.detach()}

    train_pairs(model, train, loss, settings, stage)
    if held_out:
        right = map_pairs(model, held_out, lambda part: (loss(part)[1]["odds"] > 0).float(), settings)
        stage.result("accuracy", None, right.mean().item(), floor=0.5, rows=len(held_out))
    return stage.save_policy(model, tokenizer)


@hookimpl
def alignkit_methods() -> list[Method]:
    return [orpo]
