"""Adapters of others: opened exactly as PEFT opens them, or refused beforehand with a reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    JambaConfig,
    Llama4TextConfig,
    Qwen3MoeConfig,
)

from alignkit.contract.kinds import Policy, RewardModel
from alignkit.contract.settings import LoRA
from alignkit.errors import DataError
from alignkit.estimate.compatibility import check_policy, check_reward
from alignkit.training.adapters import weights_with
from alignkit.training.miniature import miniature
from alignkit.training.models import adapted_model, load_for_reward_training, load_policy, load_reward_model, rows_of
from alignkit.training.saving import save_policy, save_reward
from alignkit.training.weight_files import ScoreScale

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning")

ROWS = torch.arange(3, 15)[None]
LORA: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "DoRA": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True},
    "biases": {"bias": "all"},
    "one layer": {"layers_to_transform": [0]},
    "ranks of their own": {"target_modules": r".*\.q_proj", "rank_pattern": {"q_proj": 3}},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "whole embedding and head": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "single tokens": {"trainable_token_indices": [5, 6]},
    "single tokens by name": {"trainable_token_indices": {"embed_tokens": [5, 6]}},
}
OTHERS: dict[str, dict[str, Any]] = {
    "IA3Config": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LoHaConfig": {"target_modules": ["q_proj"]},
    "LoKrConfig": {"target_modules": ["q_proj"]},
    "VeraConfig": {"target_modules": ["q_proj"]},
    "OFTConfig": {"target_modules": ["q_proj"], "oft_block_size": 4, "r": 0},
    "LNTuningConfig": {"target_modules": ["input_layernorm"]},
}


@pytest.fixture
def base(model_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a base, its embedding and head tied or not."""

    def write(tied: bool = False) -> Path:
        folder = tmp_path / f"base-{tied}"
        config = AutoConfig.from_pretrained(model_folder)
        config.tie_word_embeddings = tied
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
        return folder

    return write


def write_adapter(base: Path, folder: Path, config: Any, more: int = 0) -> Path:
    """Write an adapter with weights at random, trained with so many tokens more than its base knows."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    if more:
        tokenizer.add_special_tokens({"extra_special_tokens": [f"<|{n}|>" for n in range(more)]})
        model.resize_token_embeddings(len(tokenizer))
    adapted = get_peft_model(model, config)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn_like(weight) * 0.2)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def as_policy(folder: Path) -> Policy:
    return Policy(name="base", fingerprint="0", path=folder)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(ROWS).logits
    return found


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def opened_as_by_peft(adapter: Path) -> None:
    check_policy(adapter)
    model, _ = load_policy(as_policy(adapter))

    same(logits(model), logits(AutoPeftModelForCausalLM.from_pretrained(adapter)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_an_adapter_gives_the_logits_that_peft_gives(
    base: Callable[..., Path], tmp_path: Path, kind: str, tied: bool
) -> None:
    opened_as_by_peft(write_adapter(base(tied), tmp_path / "adapter", LoraConfig(**LORA | KINDS[kind])))


@pytest.mark.parametrize("kind", OTHERS)
def test_adapters_of_other_kinds_that_can_be_merged_are(base: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    config = getattr(peft, kind)(**OTHERS[kind], task_type="CAUSAL_LM")

    opened_as_by_peft(write_adapter(base(), tmp_path / "adapter", config))


GROWN = ("whole embedding", "whole embedding and head", "DoRA", "embedding")


@pytest.mark.parametrize("kind", GROWN)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_base_grows_to_the_size_of_the_adapters_own_weights(
    base: Callable[..., Path], tmp_path: Path, kind: str, tied: bool
) -> None:
    adapter = write_adapter(base(tied), tmp_path / "adapter", LoraConfig(**LORA | KINDS[kind]), more=2)

    opened_as_by_peft(adapter)

    assert rows_of(as_policy(adapter))[1] == len(AutoTokenizer.from_pretrained(adapter))


def test_single_tokens_that_the_base_lacks_let_it_grow_to_the_tokenizer(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    config = LoraConfig(**LORA, trainable_token_indices=[384, 385])

    opened_as_by_peft(write_adapter(base(), tmp_path / "adapter", config, more=2))


def test_a_base_with_more_rows_than_the_adapters_weights_is_made_smaller(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    folder = base()
    adapter = write_adapter(folder, tmp_path / "adapter", LoraConfig(**LORA | KINDS["whole embedding and head"]))
    before = logits(load_policy(as_policy(adapter))[0])
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(400)
    model.save_pretrained(folder)

    check_policy(adapter)

    same(logits(load_policy(as_policy(adapter))[0]), before)


@pytest.mark.parametrize("kind", ["whole embedding", "embedding", "head", "plain"])
def test_a_merged_model_is_saved_as_it_was_also_where_its_embedding_was_tied(
    base: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    adapter = write_adapter(base(True), tmp_path / "adapter", LoraConfig(**LORA | KINDS[kind]))
    for name, lora in (("full", None), ("lora", LoRA(rank=2))):
        model, tokenizer = load_policy(as_policy(adapter), lora=lora)

        save_policy(model, tokenizer, tmp_path / name)

        same(logits(AutoModelForCausalLM.from_pretrained(tmp_path / name)), logits(model))


def test_an_adapter_on_an_adapter_stands_on_both(base: Callable[..., Path], tmp_path: Path) -> None:
    first = write_adapter(base(), tmp_path / "first", LoraConfig(**LORA))
    model, tokenizer = load_policy(as_policy(first))
    save_policy(model, tokenizer, tmp_path / "merged")
    second = write_adapter(tmp_path / "merged", tmp_path / "second", LoraConfig(**LORA))
    expected = logits(load_policy(as_policy(second))[0])
    file = second / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "../first"}))

    check_policy(second)

    same(logits(load_policy(as_policy(second))[0]), expected)


@pytest.mark.parametrize("config", [Qwen3MoeConfig(), Llama4TextConfig(), JambaConfig()])
@torch.no_grad()
def test_what_an_adapter_on_all_layers_changes_is_what_it_changes_once_it_is_merged(config: Any) -> None:
    base, model = miniature(config), adapted_model(miniature(config), LoRA(rank=2), "CAUSAL_LM", None)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.1)
    plain, expected = (one(input_ids=ROWS, use_cache=False).logits for one in (base, model))

    base.load_state_dict(weights_with(model))

    torch.testing.assert_close(base(input_ids=ROWS, use_cache=False).logits, expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(plain, expected, atol=0.1)


def test_one_of_several_adapters_is_named_by_its_folder(base: Callable[..., Path], tmp_path: Path) -> None:
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base()), LoraConfig(**LORA))
    adapted.add_adapter("other", LoraConfig(**LORA, r=4, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base()).save_pretrained(tmp_path / "adapter" / "other")
    adapted.set_adapter("other")

    same(logits(load_policy(as_policy(tmp_path / "adapter" / "other"))[0]), logits(adapted))


def refused(adapter: Path) -> str:
    """Give the one message of both: the look beforehand, and the opening."""
    with pytest.raises(DataError) as early:
        check_policy(adapter)
    with pytest.raises(DataError) as late:
        load_policy(as_policy(adapter))
    assert str(early.value) == str(late.value)
    return str(early.value).replace(str(adapter.parent), "FOLDER")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "PREFIX_TUNING"),
        (peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "PROMPT_TUNING"),
        (peft.PromptEncoderConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "P_TUNING"),
        (peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1, task_type="CAUSAL_LM"), "ADAPTION_PROMPT"),
    ],
)
def test_an_adapter_that_changes_no_weights_is_refused_by_name(
    base: Callable[..., Path], tmp_path: Path, config: Any, kind: str
) -> None:
    adapter = write_adapter(base(), tmp_path / "adapter", config)

    assert refused(adapter) == (
        f"FOLDER/adapter: an adapter of the kind {kind} has no weights that can be merged into its base; "
        "take an adapter that changes weights, such as LoRA"
    )


def test_an_adapter_on_quantised_weights_is_refused(base: Callable[..., Path], tmp_path: Path) -> None:
    folder = base()
    adapter = write_adapter(folder, tmp_path / "adapter", LoraConfig(**LORA))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))

    with pytest.raises(DataError) as caught:
        check_policy(adapter)

    assert str(caught.value) == (
        f"{folder}: the weights of the adapter's base are quantised (gptq), so it cannot be merged into them; "
        "name the folder of its full weights as the adapter's base"
    )


def test_an_adapter_of_another_base_is_refused_with_both_sizes(base: Callable[..., Path], tmp_path: Path) -> None:
    folder = base()
    adapter = write_adapter(folder, tmp_path / "adapter", LoraConfig(**LORA, r=8))
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size, config.head_dim = 64, config.head_dim
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)

    assert refused(adapter) == (
        "FOLDER/adapter: the adapter does not fit its base: model.layers.0.self_attn.q_proj.lora_A.weight is (8, 32) "
        "in the adapter, and (8, 64) in the base; name the base that it was trained on, or merge it with its base "
        "into one folder of full weights"
    )


def test_an_adapter_of_another_task_is_refused(base: Callable[..., Path], tmp_path: Path) -> None:
    adapter = write_adapter(base(), tmp_path / "adapter", LoraConfig(**LORA))
    file = adapter / "adapter_config.json"
    facts = json.loads(file.read_text())

    file.write_text(json.dumps(facts | {"task_type": "TOKEN_CLS"}))
    tokens = refused(adapter)
    file.write_text(json.dumps(facts | {"task_type": "SEQ_CLS"}))
    scores = refused(adapter)

    assert tokens == (
        "FOLDER/adapter: the adapter was trained for TOKEN_CLS, and neither answers nor scores; "
        "take one for CAUSAL_LM (a policy) or SEQ_CLS (a reward model)"
    )
    assert scores == (
        "FOLDER/adapter: the adapter belongs to a text classifier, which gives no answers; "
        "give an adapter of a language model, or use it as a reward"
    )


def test_a_reward_adapter_says_by_its_weights_how_many_labels_it_has(base: Callable[..., Path], tmp_path: Path) -> None:
    model, tokenizer = load_for_reward_training(as_policy(base()), LoRA(rank=2))
    save_reward(model, tokenizer, tmp_path / "reward", ScoreScale(0.0, 1.0))
    reward = RewardModel(name="rm", fingerprint="0", path=tmp_path / "reward")

    check_reward(reward)
    again, *_ = load_reward_model(reward)

    same(logits(again), logits(model))


def test_an_artifact_that_keeps_its_base_inside_still_opens_where_it_is_moved(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = write_adapter(base(), tmp_path / "adapter", LoraConfig(**LORA))
    before = logits(load_policy(as_policy(adapter))[0])
    base().rename(adapter / "base")

    adapter.rename(tmp_path / "moved")

    same(logits(load_policy(as_policy(tmp_path / "moved"))[0]), before)
