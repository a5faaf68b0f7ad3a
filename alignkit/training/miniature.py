"""A model in small: the architecture of a config with few layers, small widths, a short window and random weights.

What a model computes in one way and not in another (packed rows, padded ones, a cache) depends on its architecture, so
it is tried on a miniature, in a moment and before any weights are loaded. What begins to matter at a length that few
rows reach, such as a sliding window, is set so short here that a few tokens reach it.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignkit.training.packing import FAILURES, name_decoder

WINDOW = 8
"""Tokens that a layer with a window looks back."""
LAYERS = 3
"""At least, so that there is one to freeze and one to train."""
WEIGHTS = 2**27
"""A miniature is no larger; where sizes cannot be made small, its layers stand in their full width."""
SPREAD = 0.2
"""Standard deviation of its weights: large enough that whatever differs between two ways is seen."""

VOCABULARY = 128

SIZES: Mapping[str, int] = dict.fromkeys(
    ("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size", "attention_hidden_size", "lru_width"), 64
) | {
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "dff"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "shared_expert_intermediate_size", "intermediate_size_mlp", "dim_ff"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_intermediate_size", "expert_ffn_hidden_size"), 48),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "dense_intermediate_size"), 48),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_num_heads",), 4),
    "linear_num_key_heads": 2,
    "linear_head_dim": 16,
    **dict.fromkeys(("head_dim", "global_head_dim", "kv_channels", "attention_head_size", "qk_nope_head_dim"), 16),
    **dict.fromkeys(("v_head_dim", "linear_key_head_dim", "linear_value_head_dim", "dim_head", "index_head_dim"), 16),
    "qk_rope_head_dim": 16,
    "embedding_dim": 64,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("word_embed_proj_dim", "hidden_size_per_layer_input"), 64),
    "vocab_size_per_layer_input": VOCABULARY,
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 16),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), 1),
    **dict.fromkeys(("rotary_dim",), 8),
    "index_n_heads": 4,
    "index_topk": WINDOW,
    "block_size": 2 * WINDOW,
    "laurel_rank": 16,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "max_window_layers": 1,
    "moe_layer_start_index": 1,
}
"""What a setting of a config becomes, where it is larger."""
WINDOWS = ("sliding_window", "attention_window_size", "window_size", "local_attention", "attention_chunk_size",
           "keep_window_size", "sliding_window_size")  # fmt: skip
"""What configs call the tokens that a layer looks back, or the chunk that it stays in."""
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "n_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_blocks",
)
"""What they call the count of their layers."""
PERIODS: Mapping[str, int] = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "moe_layer_interval": 1,
    "global_attn_every_n_layers": 2,
}
"""Of layers that are not all of one kind."""
DERIVED = ("full_attn_idxs", "moe_layers", "hybrid_layer_ids", "moe_layer_end_index")
"""What a config works out by itself."""


def miniature(config: Any) -> PreTrainedModel | None:
    """Make a small model of the same architecture, in fp32 on the processor; None where that cannot be done.

    It reads any of the model's first tokens (its vocabulary is small), and is the same in every call.
    """
    for small in (_small(config), _shallow(config), _config(config.get_text_config(), {})):  # it may be small already
        if small is not None and (model := _made(small)) is not None:
            return model
    return None


def _made(config: Any) -> PreTrainedModel | None:
    """Make a model with weights of one seed, and try whether it reads at all."""
    make: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            with torch.device("meta"):
                weights = sum(weight.numel() for weight in make.from_config(copy.deepcopy(config)).parameters())
            if weights > WEIGHTS:
                return None
            model: PreTrainedModel = make.from_config(config, trust_remote_code=False, dtype=torch.float32).eval()
            name_decoder(model)
            stir(model)
            with torch.no_grad():
                found = model(input_ids=torch.arange(2 * WINDOW)[None] % 32 + 3, use_cache=False).logits
        except FAILURES:
            return None
    return model if bool(found.isfinite().all()) else None


def stir(model: nn.Module) -> None:
    """Give a model's matrices weights that are not small, so that nothing is lost in rounding."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "conv" not in name and "norm" not in name:
            nn.init.normal_(weight, std=min(SPREAD, 2.0 / math.sqrt(weight.shape[-1])))


def _small(config: Any) -> Any | None:
    """Return the text part of a config, made small."""
    text = config.get_text_config()
    facts = text.to_dict()
    changed = _shrunk(facts) | _fewer_layers(facts, LAYERS)
    return _config(text, changed)


def _shallow(config: Any) -> Any | None:
    """Return the text part of a config with few layers and experts, its widths as they are."""
    text = config.get_text_config()
    facts = text.to_dict()
    counts = {name: SIZES[name] for name in SIZES if "experts" in name and _number(facts.get(name)) > SIZES[name]}
    return _config(text, counts | _windows(facts) | _fewer_layers(facts, 2) | {"vocab_size": VOCABULARY})


def _config(text: Any, changed: Mapping[str, Any]) -> Any | None:
    facts = {key: value for key, value in text.to_dict().items() if key not in DERIVED}
    for name in ("quantization_config", "dtype", "torch_dtype", "transformers_version", "architectures"):
        facts.pop(name, None)
    tokens = {name: _token(name, value) for name, value in facts.items() if name.endswith("_token_id")}
    try:
        made = type(text)(**{**facts, **tokens, **changed})
    except Exception:  # each architecture checks its config in its own way, and none is known here
        return None
    made._attn_implementation = text._attn_implementation
    return made


def _token(name: str, value: Any) -> int | None:
    """Return a special token a place in the small vocabulary."""
    places = {"pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1}
    return value if value is None or _number(value) in range(1, 3) else places.get(name, 2)


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _shrunk(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Make widths small, and keep what they are to each other where that means something."""
    found: dict[str, Any] = {name: size for name, size in SIZES.items() if _number(facts.get(name)) > size}
    found |= _windows(facts) | {name: value for name, value in PERIODS.items() if _number(facts.get(name)) > value}
    found |= {"vocab_size": VOCABULARY} | {name: VOCABULARY for name in ("decoder_vocab_size",) if name in facts}
    heads = next((name for name in ("num_attention_heads", "n_head", "n_heads") if _number(facts.get(name))), "")
    for name in ("num_key_value_heads", "num_kv_heads", "num_query_groups"):
        if name in facts:
            known = _number(facts[name]) or _number(facts.get(heads))
            found[name] = 1 if known == 1 else (4 if known == _number(facts.get(heads)) else 2)
    if "head_dim" in facts:
        found["head_dim"] = 16
    if isinstance(rope := facts.get("rope_parameters"), dict):
        found["rope_parameters"] = _rope(rope)
    if facts.get("mamba_n_heads"):
        found |= {"mamba_n_heads": 4, "mamba_d_head": 64 * _number(facts.get("mamba_expand")) // 4, "mamba_n_groups": 1}
        found |= {"mamba_d_ssm": None} if "mamba_d_ssm" in facts else {}
    if facts.get("mamba_num_heads"):
        found |= {"mamba_num_heads": 4, "mamba_head_dim": 32, "n_groups": 1}
    if "time_step_rank" in facts:
        found |= {"time_step_rank": 8}
        if _number(facts.get("num_heads")):  # Mamba 2
            found |= {"num_heads": 4, "head_dim": 64 * _number(facts.get("expand")) // 4, "n_groups": 1}
        else:
            found |= {"intermediate_size": 64 * _number(facts.get("expand"))}
    if "qk_head_dim" in facts and "qk_nope_head_dim" in facts:
        found["qk_head_dim"] = 32
    for name, value in facts.items():
        if isinstance(value, dict) and name in ("attn_config", "ffn_config"):
            found[name] = value | _shrunk(value) if name == "attn_config" else value | {"ffn_hidden_size": 96}
            found[name].pop("vocab_size", None)
    return found


def _rope(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Cut the factors of single frequencies to as many as there are left; kinds of layers may have their own."""
    size = int(SIZES["head_dim"] * facts.get("partial_rotary_factor", 1.0)) // 2
    return {
        name: value[:size] if isinstance(value, list) else _rope(value) if isinstance(value, dict) else value
        for name, value in facts.items()
    }


def _windows(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: WINDOW for name in WINDOWS if _number(facts.get(name)) > WINDOW}


def _fewer_layers(facts: Mapping[str, Any], least: int) -> dict[str, Any]:
    """Keep a few layers, one of each kind that there is among them."""
    depth = next((_number(facts[name]) for name in DEPTHS if _number(facts.get(name))), 0)
    lists = {
        key: list(value)
        for key, value in facts.items()
        if isinstance(value, list | tuple) and len(value) == depth and key not in DERIVED
    }
    shared = _number(facts.get("num_kv_shared_layers"))  # at the end, which read others' keys and values
    before = depth - shared
    kept = sorted(_one_of_each([values[:before] for values in lists.values()], before, min(least, before)))
    kept += [depth - 1] * (shared > 0)
    found: dict[str, Any] = {name: len(kept) for name in DEPTHS if _number(facts.get(name))}
    found |= {key: [values[place] for place in kept] for key, values in lists.items()}
    if own := facts.get("per_layer_config"):  # what single layers have for themselves, by their place
        places = {place: number for number, place in enumerate(kept)}
        mine = {places[int(place)]: _shrunk(dict(value)) for place, value in own.items() if int(place) in places}
        found["per_layer_config"] = {
            place: {name: value for name, value in changed.items() if name != "vocab_size"}
            for place, changed in mine.items()
        }
    if types := facts.get("attention_types"):  # GPT-Neo: kinds and how often they follow each other
        kinds = types[0][0]
        found |= {"attention_types": [[kinds, 2]]} | {name: 2 * len(kinds) for name in DEPTHS if name in found}
        found["attention_layers"] = 2 * list(kinds)
    if shared:
        found["num_kv_shared_layers"] = 1
    return found


def _one_of_each(lists: Iterator[Sequence[Any]] | Any, depth: int, least: int) -> set[int]:
    """Choose places so that each value of each list is among them, the first of its kind."""
    chosen: set[int] = set()
    for values in lists:
        seen: list[Any] = [values[place] for place in chosen]
        for place, value in enumerate(values):
            if value not in seen:
                chosen.add(place)
                seen.append(value)
    for place in reversed(range(depth)):
        if len(chosen) >= least:
            break
        chosen.add(place)
    return chosen
