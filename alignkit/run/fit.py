"""Does a stage's model fit what the stage does with it: told by its config, its tokenizer and its files' names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from alignkit.contract.kinds import RewardModel
from alignkit.errors import DataError, Problem, RecipeError
from alignkit.learn.folders import base_of, is_adapter, read_json
from alignkit.learn.models import open_config, policy_tokenizer
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.run.previews import opened, policy_of

HEADS = ("score.", "classifier.", "classification_head.", "logits_proj.", "head.", "cls.", "v_head.")
"""How weights of a score's head begin."""


def remarks_on(plan: Plan, stage: PlannedStage, runs: Path, offline: bool) -> Iterator[Problem]:
    """Tell what had better be known of a stage's models. Raises DataError or RecipeError for what would end it."""
    for name in (name for several in stage.inputs.values() for name in several if name in plan.sources):
        if issubclass(plan.sources[name].kind, RewardModel):
            artifact: Any = opened(plan.sources[name], runs, offline)
            check_head(name, artifact.path)
    source = policy_of(plan, stage)
    if source is None:
        return
    artifact = opened(source, runs, offline)
    check_weights(artifact.path)
    tokenizer = policy_tokenizer(artifact)
    if tokenizer.eos_token_id is None:
        problem = "the tokenizer has no end-of-sequence token, so answers could not end"
        raise DataError(problem, f"source {source.name!r}", "name its eos_token in tokenizer_config.json")
    yield from unknown_tokens(source.name, tokenizer, open_config(artifact.path))


def check_weights(folder: Path) -> None:
    """Refuse weights that are damaged or cut off: what a file of tensors says at its beginning does not fit it."""
    for place in {folder, base_of(folder) if is_adapter(folder) else folder}:
        for file in sorted(place.glob("*.safetensors")):
            _names(file)


def unknown_tokens(name: str, tokenizer: Any, config: Any) -> Iterator[Problem]:
    """Tell of tokens that the model has no row for; a pad token is given one."""
    size = int(config.get_text_config().vocab_size)
    odd = [token for token in tokenizer.get_vocab().values() if token >= size and token != tokenizer.pad_token_id]
    if odd:
        problem = f"{len(odd)} tokens of the tokenizer of {name!r} are unknown to its model, which has {size}"
        yield Problem(problem, f"source {name!r}", "text with one of them ends the stage; give the model's tokenizer")


def check_layers(layers: int, wanted: int | None) -> None:
    """Refuse to train more upper layers than a model has, or all of them."""
    if wanted is not None and wanted >= layers:
        problem = f"the model has {layers} layers, so {wanted} trained ones leave none frozen"
        raise RecipeError(problem, "trained_layers", f"set it below {layers}, or let all weights learn")


def check_head(name: str, folder: Path) -> None:
    """Refuse a reward model whose head was not saved: it would be drawn anew, and its scores be noise."""
    files = sorted(folder.glob("*.safetensors"))
    config = read_json(folder / ("adapter_config.json" if is_adapter(folder) else "config.json"))
    if not files or any(head in str(config.get("modules_to_save")) for head in ("score", "classifier")):
        return
    names = {key for file in files for key in _names(file)}
    if not any(key.rpartition("model.")[2].startswith(HEADS) or key.startswith(HEADS) for key in names):
        problem = f"source {name!r} has no weights of a score's head, so its scores would be noise"
        raise DataError(problem, str(folder), "give the folder of a reward model, or use it as a policy")


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise DataError(f"the weights cannot be read ({error})", str(file), "copy the file again") from error
