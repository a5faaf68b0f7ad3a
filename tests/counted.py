"""A method that notes which rows each process learns from."""

from alignkit import Policy, Preferences, RowSettings, Stage, method


@method("counted")
def counted(settings: RowSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Raise chosen answers above rejected ones."""
    from torch.nn.functional import logsigmoid

    from alignkit.kit import load_policy, pair_logprobs, read_pairs, train_pairs

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    train, _ = read_pairs(pairs, model, tokenizer, settings, stage)
    numbers = {str((pair.chosen, pair.rejected)): number for number, pair in enumerate(train)}
    seen: list[int] = []

    def loss(part):
        seen.extend(numbers[str((pair.chosen, pair.rejected))] for pair in part)
        chosen, rejected = pair_logprobs(model, part)
        return -logsigmoid(chosen.sum(dim=1) - rejected.sum(dim=1)), {}

    train_pairs(model, train, loss, settings, stage)
    (stage.cache / f"seen-{stage.rank}.txt").write_text(" ".join(map(str, seen)))
    return stage.save_policy(model, tokenizer)
