"""Open models: from full weights or an adapter, quantised or not, with a fresh adapter or a new head.

Everything is opened from a local folder: no code of a model's author runs, no socket is opened. A folder holds full
weights, or a LoRA adapter whose full-weights base stands elsewhere or in its own `base/`.
"""

import copy
import importlib.util
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read once, when huggingface_hub is imported

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import GENERATION_CONFIG_NAME

from alignkit.contract.kinds import Policy, RewardModel
from alignkit.contract.settings import LoRA, Precision
from alignkit.data.adapter_folder import is_adapter
from alignkit.errors import DataError, RecipeError, near_miss
from alignkit.training.adapters import merged, resized, task_of, vocabulary_of
from alignkit.training.encoding import turn_ends
from alignkit.training.heads import bias_of, head_of, labels_of
from alignkit.training.packing import FAILURES, beneath, decoder_of, name_decoder
from alignkit.training.scorer import made_scorer, scorer_for, scorer_named_by
from alignkit.training.ways import ways_of_config
from alignkit.training.weight_files import base_of, check_model_folder, normalisation_of, read_json, root_of

Loaded = tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]
Task = Literal["CAUSAL_LM", "SEQ_CLS"]
Quantised = Literal["4bit", "8bit"] | None

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ '### ' + (message['role'] | capitalize) + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Assistant:\\n' }}{% endif %}"
)
"""The chat template of models that have none: roles as headings, and the end-of-sequence token closes an answer.

    ### User:
    What is blue?

    ### Assistant:
    The sky.<eos>
"""

PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>")


def device() -> torch.device:
    """Return this process's own GPU where there is one, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def arithmetic(precision: Precision) -> torch.dtype:
    """Return the type of number to compute with: `auto` is bf16 on a GPU that has it, else fp32."""
    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


@contextmanager
def computing(precision: Precision) -> Iterator[None]:
    """Compute in the precision's type for a while; weights in fp32 are converted where they are used."""
    with torch.autocast(device().type, torch.bfloat16, enabled=arithmetic(precision) == torch.bfloat16):
        yield


_opened: WeakKeyDictionary[nn.Module, list[tuple[Any, dict[str, Any]]]] = WeakKeyDictionary()
"""What the configs of models said when they were opened."""


def remember_configs(model: PreTrainedModel) -> None:
    """Note what a model's configs say, so that `restore_configs` can bring it back."""
    configs = [model.config, *(value for value in vars(model.config).values() if isinstance(value, PreTrainedConfig))]
    more = [model.generation_config] if model.can_generate() else []
    _opened[model] = [(config, copy.deepcopy(_public(config))) for config in (*configs, *more)]


def restore_configs(model: PreTrainedModel | PeftModel) -> None:
    """Take back what a trainer has set in the configs of a model that was opened here; it would be saved with it."""
    inner = beneath(model)
    for config, was in _opened.get(inner, ()):
        for name in _public(config).keys() - was.keys():
            delattr(config, name)
        for name, value in was.items():
            if _public(config).get(name, ...) != value:
                setattr(config, name, copy.deepcopy(value))


def _public(config: Any) -> dict[str, Any]:
    """Return what a config says, without its own notes and the configs inside it, which are looked at by themselves."""
    facts = vars(config).items()
    return {name: value for name, value in facts if name[0] != "_" and not isinstance(value, PreTrainedConfig)}


def load_policy(
    policy: Policy, *, lora: LoRA | None = None, precision: Precision = "auto", trainable: bool = True
) -> Loaded:
    """Open a policy with its tokenizer, on this process's device, in evaluation mode.

    An adapter is merged into its base. With `lora` a fresh adapter is put on top and it alone is trained. Weights that
    are trained are fp32; frozen ones have the precision's type. The tokenizer has a pad token of its own, and a chat
    template. Raises DataError where the folder is no model, RecipeError where the settings do not fit it.
    """
    _refuse_training_of_quantised(policy, lora, trainable)
    check_causal(open_config(policy.path), policy.path)
    dtype = _type_of_weights(policy.path, lora, precision) if trainable else arithmetic(precision)
    model, base = _open(AutoModelForCausalLM, policy.path, Opening(dtype, policy.load))
    tokenizer = policy_tokenizer(policy)
    base = None if _make_room(model, tokenizer, policy) else base
    if is_adapter(policy.path) and (policy.path / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(policy.path, local_files_only=True)
    if policy.load is None:
        model = _moved(model, device())
    remember_configs(model)
    if lora is not None:
        return adapted_model(model, lora, "CAUSAL_LM", base), tokenizer
    return model.requires_grad_(trainable), tokenizer


def load_for_reward_training(policy: Policy, lora: LoRA | None = None, precision: Precision = "auto") -> Loaded:
    """Open a policy's weights under a new head that gives one score, as `load_policy` opens the policy itself.

    The head begins as N(0, 1 / sqrt(d + 1)), d its inputs (Stiennon et al. 2020), and is trained and saved with an
    adapter, too. Pad differs from the end-of-sequence token: pooling looks for the last token that is not pad.
    """
    _refuse_training_of_quantised(policy, lora, trainable=True)
    check_causal(open_config(policy.path), policy.path)
    dtype = _type_of_weights(policy.path, lora, precision)
    model, base = _open(_scorer(policy), policy.path, Opening(dtype, policy.load, {"num_labels": 1}))
    tokenizer = policy_tokenizer(policy)
    base = None if _make_room(model, tokenizer, policy) else base
    head = score_head(model)
    nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    if policy.load is None:
        model = _moved(model, device())
    remember_configs(model)
    if lora is not None:
        return adapted_model(model, lora, "SEQ_CLS", base), tokenizer
    return model.requires_grad_(True), tokenizer


def load_reward_model(
    reward: RewardModel, *, precision: Precision = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, float, float]:
    """Open a reward model, frozen, with the mean and spread of its scores (0 and 1 where nobody measured them).

    Its weights say how many labels it has, and its head may have another name than transformers gives it. Raises
    DataError where it has no head: that would be drawn anew, and its scores be noise.
    """
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
    return _moved(model, device()).requires_grad_(False), tokenizer, mean, std


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

    A reward model's head is scaled and shifted so that it gives normalised scores from the start. Use `score_head`
    and the backbone (`model.base_model`) to value every token.
    """
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
        mean, std = normalisation_of(start.path)
        head.weight.data /= std
        head.bias = nn.Parameter((bias - mean) / std)
    else:
        nn.init.zeros_(head.weight)
        head.bias = nn.Parameter(torch.zeros_like(bias))
    model = _moved(model, device())
    return (adapted_model(model, lora, "SEQ_CLS", base) if lora else model.requires_grad_(True)), tokenizer


def open_config(folder: Path) -> Any:
    """Open the config of a model's folder, of its base where it is an adapter. Raises DataError where none opens it."""
    folder = root_of(folder)
    check_model_folder(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (*FAILURES, StrictDataclassError) as error:
        raise _odd_config(folder / "config.json", error) from error


def _odd_config(file: Path, error: Exception) -> DataError:
    """Word why transformers does not open a config."""
    kind = read_json(file).get("model_type")
    if kind not in CONFIG_MAPPING:
        problem = f"transformers {transformers.__version__} knows no architecture {kind!r}"
        return DataError(problem, str(file), "install a transformers that does, or correct model_type")
    told = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return DataError(f"the model's config cannot be read ({told})", str(file), "correct it, or copy the folder again")


def check_causal(config: Any, where: Path) -> None:
    """Refuse, by its config, a model whose tokens see what follows them. Raises DataError."""
    remedy = "give a decoder as policy; an encoder can score answers, as a reward"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        problem = f"transformers has no causal language model of the architecture {config.model_type!r}"
        raise DataError(problem, str(where), remedy)
    ways = ways_of_config(config)
    if ways and not ways.causal:
        problem = f"the model ({config.model_type}) is no causal language model: its tokens see what follows them"
        raise DataError(problem, str(where), remedy)


def positions(model: PreTrainedModel | PeftModel) -> int | None:
    """Return how many tokens the model reads at most; None where nothing says so."""
    return positions_of(model.config)


def positions_of(config: Any) -> int | None:
    """Tell it by the model's config alone; MPT has a name of its own for it."""
    facts = config.get_text_config()
    found = getattr(facts, "max_position_embeddings", None) or getattr(facts, "max_seq_len", None)
    return int(found) if found and found > 0 else None


def stop_tokens(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end an answer.

    They are the tokenizer's end-of-sequence token, what the model's generation config ends answers with, and what the
    chat template closes an answer with, by which a policy learns to stop.
    """
    config = getattr(model, "generation_config", None)
    ends = config.eos_token_id if config is not None else None
    more = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return frozenset([cast("int", tokenizer.eos_token_id), *more]) | turn_ends(tokenizer)


def taught_by(folder: Path) -> int | None:
    """Return how many tokens the answers needed that a folder's policy was taught by; None where it does not say."""
    file = next((one for one in (folder, root_of(folder)) if (one / GENERATION_CONFIG_NAME).is_file()), None)
    found = read_json(file / GENERATION_CONFIG_NAME).get("max_new_tokens") if file else None
    return _within(found, positions_of(open_config(folder)))


def _within(length: int | None, positions: int | None) -> int | None:
    """Leave half of a model's positions to the prompt."""
    return None if not length else min(int(length), positions // 2) if positions else int(length)


def taught_length(model: PreTrainedModel | PeftModel) -> int | None:
    """Return how many tokens the answers needed that the policy was taught by; None where nothing says so."""
    config = getattr(model, "generation_config", None)
    found = getattr(config, "max_new_tokens", None)
    return _within(found, positions(model))


def score_head(model: PreTrainedModel | PeftModel) -> nn.Linear:
    """Return the linear layer that makes scores of hidden states; raises DataError where the model has none."""
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        where = str(model.config.name_or_path)
        raise DataError("the model has no score head on its last token", where, "use a decoder such as Llama or GPT-2")
    return head


def _refuse_training_of_quantised(policy: Policy, lora: LoRA | None, trainable: bool) -> None:
    if policy.load is None:
        return
    if trainable and lora is None:
        remedy = "give the stage lora = {}, or take `load` out of the source"
        raise RecipeError(f"weights in {policy.load} cannot be trained", f"source {policy.name!r}", remedy)
    if is_adapter(policy.path):
        remedy = "merge it into one folder first, or take `load` out of the source"
        raise RecipeError(f"an adapter cannot be merged into weights in {policy.load}", str(policy.path), remedy)


def _type_of_weights(folder: Path, lora: LoRA | None, precision: Precision) -> torch.dtype:
    """Give fp32 for weights that are trained, and for a base that an adapter was merged into and that will be kept.

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
    model = model if worn_by is kind else _scorer_of(model)
    for weight in model.parameters():  # `model.to` would round the buffers, too, rotary frequencies among them
        weight.data = weight.data.to(how.dtype)
    model.train(False)
    return model, None


def _scorer_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a text classifier with one score that has a language model's weights under its head."""
    model.config.num_labels = 1
    scorer: PreTrainedModel = made_scorer(model.config)
    decoder_of(scorer).load_state_dict(decoder_of(model).state_dict())
    return scorer.requires_grad_(True)


def _scorer(start: Policy | RewardModel) -> Any:
    """Return what opens a folder with a score for a head: one saved so, or a policy's weights under a new one."""
    config = open_config(start.path)
    return scorer_named_by(config) if isinstance(start, RewardModel) else scorer_for(config)


def _moved(model: Any, to: torch.device) -> PreTrainedModel:
    """Do what `model.to` does, which transformers has annotated wrongly."""
    moved: PreTrainedModel = model.to(to)
    return moved


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


def policy_tokenizer(policy: Policy) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a policy, with the chat template that its source gives, if it gives one."""
    return open_tokenizer(policy.path, policy.chat_template)


def open_tokenizer(folder: Path, template: str | None = None) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a policy's folder, with a chat template: the one given, else its own, else a plain one."""
    tokenizer = _tokenizer(folder)
    if template is not None or tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE if template is None else template
    return tokenizer


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a folder, or of the base where an adapter brings none."""
    if is_adapter(folder) and not any(folder.glob("tokenizer*")):
        folder = base_of(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        if (folder / "config.json").is_file():
            open_config(folder)  # the reason, where this fails
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"the tokenizer cannot be opened ({reason})", str(folder), "add its tokenizer files") from error
    return tokenizer


def _make_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, start: Policy | RewardModel) -> bool:
    """Grow the embedding for a pad token, or for all tokens where the source says so; say whether it had to grow."""
    wanted = isinstance(start, Policy) and start.grow_embedding
    embedding: Any = model.get_input_embeddings()
    grown = wanted and len(tokenizer) > embedding.num_embeddings and resized(model, len(tokenizer))
    return _give_pad(model, tokenizer) or grown


def _give_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """See to a pad token that is not the end of a sequence; say whether the model's weights had to grow for it.

    A new one is `<pad>`, for which the embedding grows unless it has spare rows.
    """
    if tokenizer.eos_token_id is None:
        problem = "the tokenizer has no end-of-sequence token, so answers could not end"
        raise DataError(problem, str(tokenizer.name_or_path), "name its eos_token in tokenizer_config.json")
    if tokenizer.pad_token != (name := pad_name(tokenizer)):
        tokenizer.add_special_tokens({"pad_token": name})
    embedding: Any = model.get_input_embeddings()
    grown = tokenizer.pad_token_id >= embedding.num_embeddings and resized(model, len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if model.can_generate():
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return grown


def pad_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Choose the pad token: the tokenizer's own, unless it ends sequences; one named like it; the unknown token.

    Else it is `<pad>`, which the tokenizer may not have yet.
    """
    eos = tokenizer.eos_token_id
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != eos:
        return str(tokenizer.pad_token)
    known = tokenizer.get_vocab()
    names = [str(name) for name in (*PAD_NAMES, tokenizer.unk_token)]
    return next((n for n in names if n in known and known[n] not in (eos, tokenizer.bos_token_id)), "<pad>")


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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off and gradients too for a while, and leave the model in the mode that it had."""
    training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(training)


def padded(
    rows: Sequence[Sequence[int]], pad: int, where: torch.device | str = "cpu", value: int = 1
) -> tuple[Tensor, Tensor]:
    """Fill rows up on the right; gives tokens and mask, both (n, t), the mask 1 on what was there."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.tensor([[value] * len(row) + [0] * (width - len(row)) for row in rows])
    return tokens.to(where), mask.to(where)
