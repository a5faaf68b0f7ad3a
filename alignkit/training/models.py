"""Open models: from full weights or an adapter, quantised or not, with a fresh adapter or a new head.

Everything is opened from a local folder: no code of a model's author runs, no socket is opened. A folder holds full
weights, or a LoRA adapter whose full-weights base stands elsewhere or in its own `base/`.
"""

import importlib.util
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import GENERATION_CONFIG_NAME

from alignkit.contract.kinds import Policy, RewardModel
from alignkit.contract.settings import LoRA, Precision
from alignkit.data.adapter_folder import is_adapter
from alignkit.errors import DataError, RecipeError, near_miss
from alignkit.training import sharding
from alignkit.training.adapters import merged, task_of, vocabulary_of
from alignkit.training.arithmetic import arithmetic
from alignkit.training.configs import check_causal, open_config, remember_configs
from alignkit.training.heads import bias_of, head_of, labels_of
from alignkit.training.packing import FAILURES, beneath, decoder_of, name_decoder
from alignkit.training.room import hold
from alignkit.training.scorer import made_scorer, scorer_for, scorer_named_by
from alignkit.training.tokenizers import _give_pad, _make_room, _tokenizer, open_tokenizer, pad_name, policy_tokenizer
from alignkit.training.weight_files import base_of, check_model_folder, normalisation_of, scale_of

Loaded = tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]
ModelT = TypeVar("ModelT", bound=PreTrainedModel | PeftModel)


Task = Literal["CAUSAL_LM", "SEQ_CLS"]


Quantised = Literal["4bit", "8bit"] | None


def load_policy(
    policy: Policy, *, lora: LoRA | None = None, precision: Precision = "auto", trainable: bool = True
) -> Loaded:
    """Open a policy with its tokenizer, on this process's device, in evaluation mode.

    An adapter is merged into its base. With `lora` a fresh adapter is put on top and it alone is trained. Weights that
    are trained are fp32; frozen ones have the precision's type. The tokenizer has a pad token of its own, and a chat
    template. Raises DataError where the folder is no model, RecipeError where the settings do not fit it.
    """
    _refuse_training_of_quantised(policy, lora, trainable)

    def opened() -> Loaded:
        check_causal(open_config(policy.path), policy.path)
        dtype = _type_of_weights(policy.path, lora, precision) if trainable else arithmetic(precision)
        model, base = _open(AutoModelForCausalLM, policy.path, Opening(dtype, policy.load))
        tokenizer = policy_tokenizer(policy)
        base = None if _make_room(model, tokenizer, policy) else base
        if is_adapter(policy.path) and (policy.path / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(policy.path, local_files_only=True)
        remember_configs(model)
        return (adapted_model(model, lora, "CAUSAL_LM", base) if lora else model.requires_grad_(trainable)), tokenizer

    model, tokenizer = sharding.by_first(opened)
    return _placed(model, precision, policy), tokenizer


def load_reference(
    reference: Policy, policy: Policy, tokenizer: PreTrainedTokenizerBase, precision: Precision = "auto"
) -> PreTrainedModel:
    """Open what a policy is compared with, its own start or another one, which does not learn.

    `tokenizer` is the policy's. Raise DataError where the reference has other tokens.
    """
    model, words = load_policy(reference, precision=precision, trainable=False)
    if words.get_vocab() != tokenizer.get_vocab():
        problem = f"the reference {reference.name!r} has other tokens than the policy {policy.name!r}"
        raise DataError(problem, remedy="name a policy of the same tokenizer under inputs.reference")
    return model


def load_for_reward_training(
    policy: Policy, lora: LoRA | None = None, precision: Precision = "auto", heads: int = 1
) -> Loaded:
    """Open a policy's weights under new heads that give one score each, as `load_policy` opens the policy itself.

    A head begins as N(0, 1 / sqrt(d + 1)), d its inputs (Stiennon et al. 2020), and is trained and saved with an
    adapter, too. Pad differs from the end-of-sequence token: pooling looks for the last token that is not pad.
    """
    _refuse_training_of_quantised(policy, lora, trainable=True)

    def opened() -> Loaded:
        check_causal(open_config(policy.path), policy.path)
        dtype = _type_of_weights(policy.path, lora, precision)
        model, base = _open(_scorer(policy), policy.path, Opening(dtype, policy.load, {"num_labels": heads}))
        tokenizer = policy_tokenizer(policy)
        base = None if _make_room(model, tokenizer, policy) else base
        head = score_head(model)
        nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
        remember_configs(model)
        return (adapted_model(model, lora, "SEQ_CLS", base) if lora else model.requires_grad_(True)), tokenizer

    model, tokenizer = sharding.by_first(opened)
    return _placed(model, precision, policy), tokenizer


def load_reward_model(
    reward: RewardModel, *, precision: Precision = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, float, float]:
    """Open a reward model, frozen, with the mean and spread of its scores (0 and 1 where nobody measured them).

    Its weights say how many labels it has, and its head may have another name than transformers gives it. Raises
    DataError where it has no head: that would be drawn anew, and its scores be noise.
    """

    def opened() -> tuple[PreTrainedModel, tuple[PreTrainedTokenizerBase, float, float]]:
        model, _ = _open(
            _scorer(reward), reward.path, Opening(arithmetic(precision), None, head_options(reward.path), whole=True)
        )
        tokenizer = _tokenizer(reward.path)
        embedding: Any = model.get_input_embeddings()
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= getattr(embedding, "num_embeddings", math.inf):
            _give_pad(model, tokenizer)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        _give_bias(model, reward.path)
        mean, std = normalisation_of(reward.path)
        return model.requires_grad_(False), (tokenizer, mean, std)

    model, beside = sharding.by_first(opened)
    return _placed(model, precision), *beside


def head_options(folder: Path) -> dict[str, Any]:
    """Return what a classifier must be opened with for its head: the number of labels, and its name where it is odd."""
    head = head_of(folder)
    labels = labels_of(folder, head)
    renamed = {"key_mapping": head.renaming} if head and head.renaming else {}
    return renamed | ({"num_labels": labels} if labels is not None else {})


def _give_bias(model: PreTrainedModel, folder: Path) -> None:
    """Add what the head in the weights adds to every score, where transformers' own head has no place for it."""
    layer: Any = dict(model.named_children()).get("score")
    head = head_of(folder)
    if layer is None or head is None or "bias" in dict(layer.named_parameters()):
        return
    bias = bias_of(head)
    if bias is not None:
        layer.register_parameter("bias", nn.Parameter(bias.to(layer.weight.dtype)))


def load_critic(start: Policy | RewardModel, *, lora: LoRA | None = None, precision: Precision = "auto") -> Loaded:
    """Open a critic: a reward model's weights, head included, or a policy's under a head of zeros.

    A reward model's head is scaled and shifted so that it gives normalised scores from the start; of several heads it
    is their mean. Use `score_head` and the backbone (`model.base_model`) to value every token.
    """

    def opened() -> Loaded:
        dtype = _type_of_weights(start.path, lora, precision)
        given = head_options(start.path) if isinstance(start, RewardModel) else {}
        model, base = _open(_scorer(start), start.path, Opening(dtype, None, {"num_labels": 1} | given))
        if isinstance(start, RewardModel):
            _give_bias(model, start.path)
        tokenizer = policy_tokenizer(start) if isinstance(start, Policy) else _tokenizer(start.path)
        base = None if _make_room(model, tokenizer, start) else base
        head = score_head(model)
        bias = dict(head.named_parameters()).get("bias", head.weight.new_zeros(1)).detach()
        if isinstance(start, RewardModel):
            mean, std, heads = scale_of(start.path)
            if heads:
                bias = _as_one(model, head, bias)
            head.weight.data /= std
            head.bias = nn.Parameter((bias - mean) / std)
        else:
            nn.init.zeros_(head.weight)
            head.bias = nn.Parameter(torch.zeros_like(bias))
        return (adapted_model(model, lora, "SEQ_CLS", base) if lora else model.requires_grad_(True)), tokenizer

    model, tokenizer = sharding.by_first(opened)
    return _placed(model, precision), tokenizer


def _as_one(model: PreTrainedModel, head: nn.Linear, bias: Tensor) -> Tensor:
    """Make one head of several, which gives their mean, and return its bias."""
    head.weight, head.out_features = nn.Parameter(head.weight.detach().mean(dim=0, keepdim=True)), 1
    model.config.num_labels = 1
    return bias.mean().view(1)


def score_head(model: PreTrainedModel | PeftModel) -> nn.Linear:
    """Return the linear layer that makes scores of hidden states; raises DataError where the model has none."""
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        where = str(model.config.name_or_path)
        raise DataError("the model has no score head on its last token", where, "use a decoder such as Llama or GPT-2")
    return head


def heads_of(model: PreTrainedModel | PeftModel) -> int:
    """Return how many scores a text classifier gives."""
    config: Any = model.config
    return int(config.num_labels)


def _refuse_training_of_quantised(policy: Policy, lora: LoRA | None, trainable: bool) -> None:
    if policy.load is None:
        return
    sharding.refuse(f"weights in {policy.load}", f"source {policy.name!r}")
    if trainable and lora is None:
        remedy = "give the stage lora = {}, or take `load` out of the source"
        raise RecipeError(f"weights in {policy.load} cannot be trained", f"source {policy.name!r}", remedy)
    if is_adapter(policy.path):
        remedy = "merge it into one folder first, or take `load` out of the source"
        raise RecipeError(f"an adapter cannot be merged into weights in {policy.load}", str(policy.path), remedy)


def _type_of_weights(folder: Path, lora: LoRA | None, precision: Precision) -> torch.dtype:
    """Return fp32 for weights that are trained, and for a base that an adapter was merged into and that will be kept.

    What an adapter has learnt would be lost among the eight bits of bf16.
    """
    return torch.float32 if lora is None or is_adapter(folder) else arithmetic(precision)


@dataclass(frozen=True)
class Opening:
    """How a folder of weights is opened."""

    dtype: torch.dtype
    quantised: Quantised = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else `from_pretrained` is told."""
    whole: bool = False
    """A classifier's head must be among the weights."""


def _open(kind: Any, folder: Path, how: Opening) -> tuple[PreTrainedModel, Path | None]:
    """Open full weights; give the folder that holds exactly them, or None where an adapter was merged."""
    if not is_adapter(folder):
        return open_full(kind, folder, how), folder.resolve()
    scores = task_of(folder) == "SEQ_CLS"
    if scores and kind is AutoModelForCausalLM:
        problem = "the adapter belongs to a text classifier, which gives no answers"
        raise DataError(problem, str(folder), "give an adapter of a language model, or use it as a reward")
    worn_by = kind if scores else AutoModelForCausalLM
    base, _ = _open(worn_by, base_of(folder), Opening(torch.float32, None, head_options(folder) if scores else {}))
    model = merged(base, folder, len(_tokenizer(folder)))
    model = model if worn_by is kind else _scorer_of(model, how.more.get("num_labels", 1))
    for weight in model.parameters():  # `model.to` would round the buffers, too, rotary frequencies among them
        weight.data = weight.data.to(how.dtype)
    model.train(False)
    return model, None


def _scorer_of(model: PreTrainedModel, heads: int) -> PreTrainedModel:
    """Return a text classifier with so many heads that has a language model's weights under them."""
    model.config.num_labels = heads
    scorer: PreTrainedModel = made_scorer(model.config)
    decoder_of(scorer).load_state_dict(decoder_of(model).state_dict())
    return scorer.requires_grad_(True)


def _scorer(start: Policy | RewardModel) -> Any:
    """Return what opens a folder with a score for a head: one saved so, or a policy's weights under a new one."""
    config = open_config(start.path)
    return scorer_named_by(config) if isinstance(start, RewardModel) else scorer_for(config)


def _placed(opened: ModelT, precision: Precision, policy: Policy | None = None) -> ModelT:
    """Put a model where it computes; a quantised one lies where it was opened."""
    if policy is None or policy.load is None:
        opened = sharding.placed(opened, arithmetic(precision))
    hold(beneath(opened), arithmetic(precision))
    return opened


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Keep to themselves what our libraries say to each other about their future versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def open_full(kind: Any, folder: Path, how: Opening) -> PreTrainedModel:
    """Open a folder of full weights.

    Raises DataError where a file cannot be read, and where weights are missing or have other sizes than the config
    says: they would be drawn anew, and nobody told.
    """
    check_model_folder(folder)
    options = dict(how.more) | ({"quantization_config": _quantisation(how.quantised)} if how.quantised else {})
    try:
        model, report = kind.from_pretrained(
            folder,
            dtype=how.dtype,
            trust_remote_code=False,
            use_safetensors=any(folder.glob("*.safetensors")),
            weights_only=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, with their names
            **options,
        )
    except (OSError, EOFError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"the model cannot be opened ({reason})", str(folder), "check the folder's files") from error
    _check_report(model, report, folder, how.whole or kind is AutoModelForCausalLM)
    model.eval()
    name_decoder(model)
    opened: PreTrainedModel = model
    return opened


def _check_report(model: PreTrainedModel, report: Mapping[str, Any], folder: Path, whole: bool) -> None:
    """Refuse a model whose files lack weights or have some of other sizes; unless `whole`, its head may be new."""
    for name, theirs, ours in sorted(report["mismatched_keys"]):
        raise misfit(folder, name, tuple(theirs), tuple(ours))
    weights = {name for name, _ in model.named_parameters()}
    inside = f"{model.base_model_prefix}."
    missing = sorted(name for name in report["missing_keys"] if name in weights and (whole or name.startswith(inside)))
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        problem = f"{len(missing)} of the model's {len(weights)} weights are in none of its files ({some})"
        raise DataError(problem, str(folder), "give a folder that has all of them, of a model of this kind")


def misfit(folder: Path, name: str, theirs: Sequence[int], ours: Sequence[int]) -> DataError:
    """Word that a tensor has another shape in a folder's files than its config says."""
    problem = f"the weights do not fit config.json: {name} is {tuple(theirs)} in the files and {tuple(ours)} by it"
    return DataError(problem, str(folder), "correct the config, or copy the folder again")


def _quantisation(quantised: Literal["4bit", "8bit"]) -> BitsAndBytesConfig:
    where = f'load = "{quantised}"'
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError("the package bitsandbytes is missing", where, 'pip install "alignkit[4bit]"')
    if not torch.cuda.is_available():
        raise RecipeError("quantised weights need a GPU, and there is none", where, "take `load` out of the source")
    make: Any = BitsAndBytesConfig
    if quantised == "8bit":
        return make(load_in_8bit=True)  # type: ignore[no-any-return]
    return make(  # type: ignore[no-any-return]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=arithmetic("auto"),
    )


def rows_of(policy: Policy) -> tuple[int, int]:
    """Return how many tokens a policy's embedding has rows for in its files, and how many once it is opened.

    Told by config, tokenizer and the beginnings of files alone: the adapter on it may have grown it, a pad token may
    need a row, and the source may ask for rows for all tokens of the tokenizer.
    """
    files = (file for file in policy.path.iterdir() if file.suffix in (".json", ".safetensors"))
    state = tuple(sorted((file.name, file.stat().st_mtime_ns) for file in files))
    return _rows_of(policy, state)


@lru_cache(maxsize=64)
def _rows_of(policy: Policy, state: object) -> tuple[int, int]:
    """Tell it for a folder in this state: opening a large tokenizer takes a second."""
    tokenizer, config = open_tokenizer(policy.path), open_config(policy.path)
    in_files = known = int(config.get_text_config().vocab_size)
    if is_adapter(policy.path):
        with torch.device("meta"):
            made: Any = AutoModelForCausalLM
            base = made.from_config(config, trust_remote_code=False)
        known = vocabulary_of(policy.path, base, len(tokenizer))
    known = max(known, len(tokenizer)) if policy.grow_embedding else known
    name = pad_name(tokenizer)
    pad = tokenizer.get_vocab().get(name, len(tokenizer))
    return in_files, known if pad < known else max(len(tokenizer), pad + 1)


def adapted_model(model: PreTrainedModel, lora: LoRA, task: Task, base: Path | None) -> PeftModel:
    """Put a fresh adapter on; `base` is the folder that holds exactly these weights, if any does."""
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        exclude_modules=_unfit_for_adapters(model) if isinstance(lora.targets, str) else None,
        task_type=task,  # SEQ_CLS also trains and saves the head, without which a reward model is noise
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    if base is None:
        model.name_or_path = ""  # PEFT would name the folder that was opened, whose weights are others
    try:
        with without_deprecations(), warnings.catch_warnings():
            # PEFT looks for fused experts among the layers of a mixture of experts, and says so of itself.
            warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
            adapted: PeftModel = get_peft_model(model, config)
    except ValueError as error:
        raise _no_such_layers(model, lora, error) from error
    adapted.peft_config["default"].base_model_name_or_path = str(base or "")
    return adapted.eval()


def _unfit_for_adapters(model: PreTrainedModel) -> list[str]:
    """Name the layers that are linear and on which no adapter acts as it should.

    State-space models read the weights of some past their `forward`; routers of experts (Llama 4) are linear layers
    that give more than one tensor.
    """
    read_past = any(name.endswith("A_log") for name, _ in model.named_parameters())
    linear = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    own = {type(part): part for _, part in linear if type(part).forward is not nn.Linear.forward}
    odd = {kind for kind, part in own.items() if not _gives_a_tensor(part)}
    others = {name.rpartition(".")[2] for name, part in linear if type(part) in odd}
    return sorted(others | ({"out_proj", "conv1d", "dt_proj"} if read_past else set()))


@torch.no_grad()
def _gives_a_tensor(layer: nn.Linear) -> bool:
    try:
        return isinstance(layer(layer.weight.new_zeros(1, layer.in_features)), Tensor)
    except FAILURES:
        return False


def _no_such_layers(model: PreTrainedModel, lora: LoRA, error: ValueError) -> RecipeError:
    names = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)})
    if isinstance(lora.targets, str):
        problem = f"no layer of the model can have an adapter ({str(error).splitlines()[0]})"
        return RecipeError(problem, "lora.targets", f"name some of its layers: {', '.join(names)}")
    asked = ", ".join(lora.targets)
    hints = (near_miss(target, names) for target in lora.targets)
    hint = next((h for h in hints if h), f"it has {', '.join(names)}")
    return RecipeError(f"the model has no layers {asked}", "lora.targets", hint)
