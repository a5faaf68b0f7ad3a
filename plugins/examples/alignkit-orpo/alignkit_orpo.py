"""ORPO: learn the chosen answers and push the rejected ones away, in one stage (Hong et al. 2024, arXiv 2403.07691)."""

from alignkit import Method, OfflineSettings, Policy, Preferences, Stage, hookimpl, method


class ORPOSettings(OfflineSettings):
    """Settings of `orpo`."""

    learning_rate: float = 8e-6
    """Peak learning rate."""
    beta: float = 0.1
    """Weight of the odds ratio beside the likelihood of the chosen answer."""


@method("orpo")
def orpo(settings: ORPOSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Learn the chosen answers and push the rejected ones away, in one stage."""
    from torch import tensor
    from torch.nn.functional import logsigmoid

    from alignkit import load_policy, pair_logprobs, read_pairs, train_pairs

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)

    def loss(part):  # part: so many pairs as fit; gives a loss for each (n,), and figures
        tables = pair_logprobs(model, part)  # log-probabilities of answer tokens, twice (n, t)
        lengths = tensor([[len(pair.chosen.answer), len(pair.rejected.answer)] for pair in part]).to(tables[0].device)
        chosen, rejected = (table.sum(dim=1) / lengths[:, side] for side, table in enumerate(tables))
        odds = chosen - rejected - (-chosen.expm1()).log() + (-rejected.expm1()).log()
        return -chosen - settings.beta * logsigmoid(odds), {"odds": odds.detach()}

    train_pairs(model, read_pairs(pairs, model, tokenizer, settings, stage).train, loss, settings, stage)
    return stage.save_policy(model, tokenizer)


@hookimpl
def alignkit_methods() -> list[Method]:
    return [orpo]
