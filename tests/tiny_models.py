"""Models with a few thousand weights, made on the spot."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from alignkit.contract.kinds import Policy
from alignkit.training.layouts import Models, ValueHead
from alignkit.training.packing import packs
from alignkit.training.rollouts import Critic
from alignkit.training.trunk import Trunk
from alignkit.training.updates import Loop, start

STOP = 0


def llama_config(vocabulary: int, width: int = 32) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=None,  # torch keeps the padding token's embedding at zero, and this model has no token to spare
        eos_token_id=STOP,
        bos_token_id=1,
    )


def llama(vocabulary: int, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(vocabulary)).eval()


def written_policy(
    tokenizer: Path, folder: Path, *, tied: bool, width: int = 16, layers: int = 1, positions: int = 128
) -> Policy:
    """Write a policy with the vocabulary of another one's tokenizer, for what opens it from its folder."""
    read = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=len(read),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        pad_token_id=read.pad_token_id,
        bos_token_id=None,
        eos_token_id=read.eos_token_id,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    read.save_pretrained(folder)
    return Policy(name="policy", fingerprint="0", path=folder)


def two_layers_and_a_peaked_start(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """Make a model whose output layer already tells tokens apart."""
    torch.manual_seed(seed)
    config = llama_config(vocabulary)
    config.num_hidden_layers = 2
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=0.2, generator=torch.Generator().manual_seed(seed))
    return model


def gpt2(vocabulary: int, seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=STOP)
    return GPT2LMHeadModel(config).eval()


def llama_critic(vocabulary: int, seed: int = 1) -> Critic:
    torch.manual_seed(seed)
    config = llama_config(vocabulary)
    config.num_labels = 1
    model = LlamaForSequenceClassification(config).eval()
    torch.nn.init.zeros_(model.score.weight)
    return Critic(model)


def at_random(model: PreTrainedModel) -> PreTrainedModel:
    """Make every token equally likely."""
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    return model


def uniform_models(vocabulary: int, seed: int, stop: frozenset[int]) -> Models:
    """A policy that answers at random, its frozen twin, and a critic that knows nothing."""
    policy, reference = (at_random(llama(vocabulary, seed)) for _ in range(2))
    return Models(policy, reference.requires_grad_(False), llama_critic(vocabulary, seed + 1), stop)


Layout = Literal["separate", "shared", "frozen"]


def laid_out(models: Models, layout: Layout) -> Models:
    """Lay the same policy and start out in another way, without padding."""
    if layout == "separate":
        assert all(map(packs, (models.policy, models.reference, models.critic.model)))
        return replace(models, form="packed")
    assert all(map(packs, (models.policy, models.reference)))
    head = ValueHead(models.policy.config.hidden_size, models.policy.device)
    if layout == "shared":
        return replace(models, critic=head, form="packed")
    return replace(models, reference=None, critic=head, form="packed", trunk=Trunk.cut(models.policy, 1))


def updated(
    train: Callable[[Any], None], models: Models, settings: Any, prompts: Sequence[list[int]], score: Any, seed: int
) -> list[dict[str, float]]:
    """Take all updates of a method, and give what each logged."""
    log: list[dict[str, float]] = []
    rate = settings.critic.learning_rate if models.critic else None
    state = start(models, settings, rate)
    train(Loop(models, state, prompts, score, settings, seed, lambda _, metrics: log.append(dict(metrics))))
    return log


def write_gguf(policy: Policy, file: Path) -> None:
    """Write a small Llama as a .gguf file."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(policy.path)
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece in tokenizer.all_special_tokens else 1 for piece in pieces])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output"}
    names |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"} | {
        f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name.startswith("model.layers."):
            _, _, number, rest = name.split(".", 3)
            ours = names[rest.removesuffix(".weight")]
            if ours in heads:  # llama.cpp's order of rotary pairs
                half = weight.shape[0] // heads[ours] // 2
                weight = weight.reshape(heads[ours], 2, half, -1).swapaxes(1, 2).reshape(weight.shape)
            name = f"blk.{number}.{ours}.weight"
        else:
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(
                name, "output.weight"
            )
        writer.add_tensor(name, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
