"""Does a stage's model fit what the stage does with it: told by its config, its tokenizer and its files' names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignkit.contract.kinds import Policy, Records, RewardModel
from alignkit.data.adapter_folder import is_adapter
from alignkit.data.records import placed_rows
from alignkit.errors import DataError, Problem, RecipeError
from alignkit.estimate.counting import Counted, sequences
from alignkit.estimate.desk import Desk
from alignkit.estimate.sizes import built
from alignkit.plan.plan import PlannedStage, policies_of
from alignkit.training.adapters import check_fit, task_of
from alignkit.training.configs import open_config
from alignkit.training.heads import head_of, labels_of, places_of_score
from alignkit.training.models import misfit, rows_of
from alignkit.training.templates import Learn
from alignkit.training.tokenizers import check_same_tokens, open_tokenizer, policy_tokenizer
from alignkit.training.weight_files import chain_of, root_of, shapes_in


def remarks_on(desk: Desk, stage: PlannedStage) -> Iterator[Problem]:
    """Yield warnings about a stage's models. Raises DataError or RecipeError for what would end it."""
    for source in (desk.plan.sources[name] for name in stage.taken if name in desk.plan.sources):
        if issubclass(source.kind, RewardModel):
            reward = desk.open(source)
            check_reward(reward)
            yield from _remarks_on_reward(reward)
    policies = policies_of(desk.plan, stage)
    if stage.needs and stage.needs.same_tokens:
        for source in policies[1:]:
            check_same_tokens(
                policy_tokenizer(desk.open(source)), policy_tokenizer(desk.open(policies[0])), source.name
            )
    for source in policies:
        yield from _remarks_on_policy(source.name, desk.open(source))


def _remarks_on_policy(name: str, policy: Policy) -> Iterator[Problem]:
    check_weights(policy.path)
    tokenizer = policy_tokenizer(policy)
    if tokenizer.eos_token_id is None:
        problem = "the tokenizer has no end-of-sequence token, so answers could not end"
        raise DataError(problem, f"source {name!r}", "name its eos_token in tokenizer_config.json")
    check_policy(policy.path)
    yield from unknown_tokens(name, tokenizer, rows_of(policy)[1])


def check_weights(folder: Path) -> None:
    """Refuse weights that are damaged or cut off: what a file of tensors says at its beginning does not fit it."""
    for place in chain_of(folder):
        shapes_in(place)


def check_policy(folder: Path) -> None:
    """Refuse an adapter that gives no answers, does not fit its base, or cannot be merged into it."""
    config = open_config(folder)
    try:
        model = built(config)
    except ValueError as error:
        problem = f"transformers has no language model of the kind {config.model_type!r}"
        raise DataError(problem, str(folder), "take a decoder, such as Llama, Qwen or Gemma") from error
    check_shapes(root_of(folder), model)
    for adapter in (place for place in chain_of(folder) if is_adapter(place)):
        if task_of(adapter) == "SEQ_CLS":
            problem = "the adapter belongs to a text classifier, which gives no answers"
            raise DataError(problem, str(adapter), "give an adapter of a language model, or use it as a reward")
        check_fit(adapter, built(open_config(adapter)), len(open_tokenizer(adapter)))


def check_shapes(folder: Path, model: Any) -> None:
    """Refuse weights of other sizes than the config says; `model` is what the config makes, on the meta device."""
    if getattr(model.config, "quantization_config", None) is not None:
        return  # their tensors are packed
    found = shapes_in(folder)
    for name, weight in model.named_parameters():
        if found.get(name, tuple(weight.shape)) != tuple(weight.shape):
            raise misfit(folder, name, found[name], tuple(weight.shape))


def unknown_tokens(name: str, tokenizer: Any, size: int) -> Iterator[Problem]:
    """Yield of tokens that the model has no row for; a pad token is given one."""
    odd = [token for token in tokenizer.get_vocab().values() if token >= size and token != tokenizer.pad_token_id]
    if odd:
        some = "1 token" if len(odd) == 1 else f"{len(odd)} tokens"
        problem = f"{some} of the tokenizer of {name!r} have no weights in its model, which knows {size}"
        remedy = f"sources.{name}.grow_embedding = true gives them rows; or give the model's own tokenizer"
        yield Problem(problem, f"source {name!r}", remedy)


def unscored_tokens(reward: RewardModel) -> int:
    """Count the tokens of a reward model's tokenizer that it has no row for; a pad token is given one."""
    tokenizer, known = open_tokenizer(reward.path), known_tokens(reward.path)
    numbers = [] if is_adapter(reward.path) else tokenizer.get_vocab().values()
    return sum(number >= known and number != tokenizer.pad_token_id for number in numbers)


def _remarks_on_reward(reward: RewardModel) -> Iterator[Problem]:
    if odd := unscored_tokens(reward):
        some = "1 token" if odd == 1 else f"{odd} tokens"
        told = f"{some} of the tokenizer of {reward.name!r} {'has' if odd == 1 else 'have'} no weights in its model"
        problem = f"{told}, which knows {known_tokens(reward.path)}"
        remedy = "give the model's own tokenizer: an answer with such a token would end the stage"
        yield Problem(problem, f"source {reward.name!r}", remedy)


def check_tokens(records: Records, counted: Counted, model: Policy | RewardModel, learn: Learn) -> None:
    """Refuse rows with tokens that a model has no row in its embedding for: they would end the stage."""
    trained = isinstance(model, Policy)
    known = rows_of(model)[1] if isinstance(model, Policy) else known_tokens(model.path)
    beyond = sum(row.highest >= known for row in counted.rows)
    if not beyond:
        return
    tokenizer = open_tokenizer(model.path)
    place, token = _first_beyond(records, tokenizer, known, learn)
    share = f"{beyond} of {len(counted.rows)} rows" + (f" (every {counted.step}th was looked at)" * (counted.step > 1))
    problem = (
        f"{share} of {records.name!r} hold tokens that {model.name!r} has no weights for; it has them for {known} "
        f"tokens, and {tokenizer.convert_ids_to_tokens(token)!r} is number {token}"
    )
    grown = f"sources.{model.name}.grow_embedding = true gives them rows to be learnt, or "
    raise DataError(problem, place, grown * trained + "give the model's tokenizer")


def known_tokens(folder: Path) -> int:
    """Return how many tokens a reward model has weights for."""
    return int(open_config(folder).get_text_config().vocab_size)


def _first_beyond(records: Records, tokenizer: Any, known: int, learn: Learn) -> tuple[str, int]:
    """Find the place of the first row with such a token, and the token."""
    for part in records.parts:
        for place, row in placed_rows(part, type(records).__name__, records.columns):
            try:
                ids = [token for _, one in sequences(type(records), row, tokenizer, learn) for token in one.ids]
            except DataError:  # the chat template refuses it, which is told apart
                continue
            if max(ids, default=0) >= known:
                return place, next(token for token in ids if token >= known)
    raise LookupError(f"no row of {records.name} has such a token")


def check_layers(layers: int, wanted: int | None) -> None:
    """Refuse to train more upper layers than a model has, or all of them."""
    if wanted is not None and wanted >= layers:
        problem = f"the model has {layers} layers, so {wanted} trained ones leave none frozen"
        raise RecipeError(problem, "trained_layers", f"set it below {layers}, or let all weights learn")


def check_reward(reward: RewardModel) -> None:
    """Refuse a reward model whose head was not saved, or whose label is missing or unknown.

    A head that is not there would be drawn anew, and its scores be noise.
    """
    check_weights(reward.path)
    open_tokenizer(reward.path)
    head = head_of(reward.path)
    if head is None and shapes_in(reward.path):
        problem = f"source {reward.name!r} has no weights of a score's head, so its scores would be noise"
        raise DataError(problem, str(reward.path), "give the folder of a reward model, or use it as a policy")
    labels = labels_of(reward.path, head)
    if labels is None:
        return
    places_of_score(reward, open_config(reward.path), labels)
    for adapter in (place for place in chain_of(reward.path) if is_adapter(place) and labels == 1):
        check_fit(adapter, built(open_config(adapter), scores=True), len(open_tokenizer(adapter)))
