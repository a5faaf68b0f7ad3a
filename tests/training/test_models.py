"""Models on disk and in memory: what is opened is checked, what is saved is what was trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from opened import open_reward
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from tiny_models import write_gguf
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MptConfig,
)

from alignkit.contract.kinds import FunctionReward, Policy, Reward, RewardModel
from alignkit.contract.reward_function import Answer
from alignkit.contract.settings import LoRA
from alignkit.errors import DataError, PluginError, RecipeError
from alignkit.sources.fetch import Preparation
from alignkit.training.classifiers import as_read
from alignkit.training.configs import positions_of
from alignkit.training.models import load_critic, load_for_reward_training, load_policy, load_reward_model, score_head
from alignkit.training.prepare import prepare
from alignkit.training.saving import save_policy, save_reward, unpack
from alignkit.training.tokenizers import PLAIN_TEMPLATE, stop_tokens
from alignkit.training.weight_files import ScoreScale, check_model_folder

ROWS = torch.arange(3, 15)[None]


def logits(model):
    with torch.no_grad():
        return model(ROWS).logits


def opened(path, **more):
    return Policy(name="policy", fingerprint="0", path=path, **more)


def stirred(model):
    """Give the weights that are trained other values, as training would."""
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.fixture
def adapter(policy, tmp_path):
    """A LoRA policy whose base is the tiny model's folder."""
    model, tokenizer = load_policy(policy, lora=LoRA(rank=2))
    save_policy(stirred(model), tokenizer, tmp_path / "first")
    return opened(tmp_path / "first")


def test_a_full_policy_is_reloaded_as_it_was(policy, tmp_path):
    model, tokenizer = load_policy(policy)
    save_policy(stirred(model), tokenizer, tmp_path / "saved")

    again, _ = load_policy(opened(tmp_path / "saved"))

    same(logits(again), logits(model))


def test_an_adapter_names_the_folder_of_its_base(policy, adapter):
    config = json.loads((adapter.path / "adapter_config.json").read_text())

    assert (adapter.path / config["base_model_name_or_path"]).resolve() == policy.path.resolve()
    assert not Path(config["base_model_name_or_path"]).is_absolute()


def test_an_adapter_is_written_the_same_each_time(adapter):
    config = json.loads((adapter.path / "adapter_config.json").read_text())

    assert len(config["target_modules"]) > 3
    assert config["target_modules"] == sorted(config["target_modules"])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's, at transformers
def test_other_tools_open_an_adapter_rightly_in_its_folder(policy, tmp_path, monkeypatch):
    model, tokenizer = load_policy(policy, lora=LoRA(rank=2))
    save_policy(stirred(model), tokenizer, tmp_path / "saved")

    monkeypatch.chdir(tmp_path / "saved")
    theirs = AutoPeftModelForCausalLM.from_pretrained(".")

    same(logits(theirs), logits(model))


def test_an_adapter_is_merged_where_no_other_is_put_on(policy, adapter):
    model, _ = load_policy(adapter)

    assert not isinstance(model, PeftModel)
    assert not torch.allclose(logits(model), logits(load_policy(policy)[0]))


def test_an_adapter_on_a_merged_one_is_saved_whole_and_opens_wherever_it_is_moved(adapter, tmp_path):
    partial, final = tmp_path / "align-1.partial", tmp_path / "align-1"
    model, tokenizer = load_policy(adapter, lora=LoRA(rank=2))
    save_policy(stirred(model), tokenizer, partial / "artifact", stands=final / "artifact")
    partial.rename(final)
    shutil.rmtree(adapter.path)
    final.rename(tmp_path / "elsewhere")

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere" / "artifact")
    ours, _ = load_policy(opened(tmp_path / "elsewhere" / "artifact"))

    same(logits(theirs), logits(model))
    same(logits(ours), logits(model))


def test_saving_a_merged_adapter_leaves_the_model_as_it_was(adapter, tmp_path):
    model, tokenizer = load_policy(adapter, lora=LoRA(rank=2))
    before = logits(stirred(model))

    save_policy(model, tokenizer, tmp_path / "saved")

    assert torch.equal(logits(model), before)


def test_an_adapter_that_is_moved_with_its_base_is_opened_where_it_now_lies(policy, tmp_path):
    shutil.copytree(policy.path, tmp_path / "here" / "model")
    model, tokenizer = load_policy(opened(tmp_path / "here" / "model"), lora=LoRA(rank=2))
    save_policy(stirred(model), tokenizer, tmp_path / "here" / "adapter")

    names = json.loads((tmp_path / "here" / "adapter" / "adapter_config.json").read_text())
    assert names["base_model_name_or_path"] == "../model"
    (tmp_path / "here").rename(tmp_path / "there")

    same(logits(load_policy(opened(tmp_path / "there" / "adapter"))[0]), logits(model))


def test_an_adapter_that_is_moved_alone_is_opened_with_the_base_that_stays(policy, tmp_path):
    model, tokenizer = load_policy(policy, lora=LoRA(rank=2))
    save_policy(stirred(model), tokenizer, tmp_path / "here" / "deep" / "adapter")

    (tmp_path / "here" / "deep" / "adapter").rename(tmp_path / "adapter")

    same(logits(load_policy(opened(tmp_path / "adapter"))[0]), logits(model))


def test_an_adapter_of_earlier_versions_which_names_its_base_by_its_path_is_opened_there_and_moved(policy, tmp_path):
    here = tmp_path / "here"
    shutil.copytree(policy.path, here / "model")
    model, tokenizer = load_policy(opened(here / "model"), lora=LoRA(rank=2))
    save_policy(stirred(model), tokenizer, here / "adapter")
    file, name = here / "adapter" / "adapter_config.json", str(here / "model")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))
    beside = {"base_model_name_or_path": name, "base": "../model"}
    (here / "adapter" / "base_path.json").write_text(json.dumps(beside))

    there = logits(load_policy(opened(here / "adapter"))[0])
    here.rename(tmp_path / "there")

    same(there, logits(model))
    same(logits(load_policy(opened(tmp_path / "there" / "adapter"))[0]), logits(model))


def test_a_base_from_the_hub_is_named_by_its_hub_name_and_commit(policy, tmp_path):
    cached = tmp_path / "hub" / "models--owner--name" / "snapshots" / "0123abc"
    shutil.copytree(policy.path, cached)
    model, tokenizer = load_policy(opened(cached), lora=LoRA(rank=2))

    save_policy(stirred(model), tokenizer, tmp_path / "adapter")

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "0123abc")
    same(logits(load_policy(opened(tmp_path / "adapter"))[0]), logits(model))


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_weights_are_as_readable_as_the_files_beside_them(policy, tmp_path, lora):
    model, tokenizer = load_policy(policy, lora=lora)

    save_policy(model, tokenizer, tmp_path / "saved")

    modes = {file.stat().st_mode for file in (tmp_path / "saved").iterdir()}
    assert len(modes) == 1


def test_the_built_in_model_is_as_readable_as_the_files_beside_it(tmp_path):
    prepare(Preparation(file=None, folder=tmp_path / "runs" / "sources" / "base"))

    modes = {file.stat().st_mode for file in (tmp_path / "runs" / "sources" / "base").iterdir()}
    assert len(modes) == 1


def test_a_save_that_would_reload_as_another_model_is_a_bug_that_shows(policy, tmp_path, adapter):
    model, tokenizer = load_policy(adapter, lora=LoRA(rank=2))
    model.peft_config["default"].base_model_name_or_path = str(policy.path)

    with pytest.raises(RuntimeError, match=r"the saved model's .* differs from the trained one's by"):
        save_policy(stirred(model), tokenizer, tmp_path / "saved")


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_a_reward_model_is_reloaded_with_its_head_and_normalisation(policy, adapter, tmp_path, lora):
    for number, start in enumerate((policy, adapter)):
        model, tokenizer = load_for_reward_training(start, lora)
        save_reward(stirred(model), tokenizer, tmp_path / str(number), ScoreScale(0.5, 2.0))
        saved = RewardModel(name="reward", fingerprint="0", path=tmp_path / str(number))

        again, _, mean, std = load_reward_model(saved)

        same(logits(again), logits(model))
        assert (mean, std) == (0.5, 2.0)


def test_a_new_head_is_small(policy):
    model, _ = load_for_reward_training(policy)

    assert float(score_head(model).weight.detach().std()) == pytest.approx(33**-0.5, rel=0.4)


def test_a_critic_begins_with_the_rewards_normalised_scores(policy, tmp_path):
    model, tokenizer = load_for_reward_training(policy)
    save_reward(model, tokenizer, tmp_path / "saved", ScoreScale(0.5, 2.0))

    critic, _ = load_critic(RewardModel(name="reward", fingerprint="0", path=tmp_path / "saved"))

    same(logits(critic), (logits(model) - 0.5) / 2.0)


def test_a_critic_from_a_policy_begins_with_zeros(policy):
    critic, _ = load_critic(policy)

    assert not logits(critic).any()


def test_what_is_trained_is_single_precision_whatever_the_arithmetic(policy):
    full, _ = load_policy(policy, precision="bf16")
    frozen, _ = load_policy(policy, precision="bf16", trainable=False)
    adapted, _ = load_policy(policy, precision="bf16", lora=LoRA(rank=2))

    assert {w.dtype for w in full.parameters()} == {torch.float32}
    assert {w.dtype for w in frozen.parameters()} == {torch.bfloat16}
    assert {w.dtype for w in adapted.parameters() if w.requires_grad} == {torch.float32}


def test_an_adapter_is_merged_and_kept_in_single_precision_whatever_the_arithmetic(adapter, tmp_path):
    model, tokenizer = load_for_reward_training(adapter, LoRA(rank=2), precision="bf16")

    save_reward(stirred(model), tokenizer, tmp_path / "saved", ScoreScale(0.0, 1.0))

    assert {w.dtype for w in model.parameters()} == {torch.float32}


def test_a_merged_policy_in_half_precision_keeps_its_rotary_frequencies(adapter):
    model, _ = load_policy(adapter, precision="bf16", trainable=False)

    assert {w.dtype for w in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_frozen_policy_wants_no_gradient(policy):
    model, _ = load_policy(policy, trainable=False)

    assert not any(weight.requires_grad for weight in model.parameters())


def without_pad(policy, tmp_path, **special):
    """Copy the tiny model with a tokenizer that pads with its end-of-sequence token, as GPT-2's does."""
    folder = tmp_path / "unpadded"
    shutil.copytree(policy.path, folder)
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    facts = {key: value for key, value in facts.items() if key not in ("pad_token", "unk_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts | {"pad_token": "<eos>"} | special))
    return folder


def test_a_token_named_pad_becomes_the_pad_token(policy, tmp_path):
    model, tokenizer = load_policy(opened(without_pad(policy, tmp_path)))

    assert (tokenizer.pad_token, model.config.pad_token_id) == ("<pad>", 0)


def test_without_any_unused_token_the_embedding_grows_and_the_base_is_kept(policy, tmp_path):
    folder = without_pad(policy, tmp_path)
    raw = (folder / "tokenizer.json").read_text().replace('"<pad>"', '"<odd>"')
    (folder / "tokenizer.json").write_text(raw)

    model, tokenizer = load_policy(opened(folder), lora=LoRA(rank=2))
    save_policy(stirred(model), tokenizer, tmp_path / "saved")
    again, same_tokenizer = load_policy(opened(tmp_path / "saved"))

    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 384)
    assert same_tokenizer.pad_token_id == 384
    assert again.get_input_embeddings().num_embeddings == 385
    same(logits(again), logits(model))


def test_a_tokenizer_without_an_end_is_refused(policy, tmp_path):
    folder = without_pad(policy, tmp_path)
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(facts | {"eos_token": None, "pad_token": "<pad>"}))

    with pytest.raises(DataError) as caught:
        load_policy(opened(folder))

    assert str(caught.value) == (
        f"{folder}: the tokenizer has no end-of-sequence token, so answers could not end; "
        "name its eos_token in tokenizer_config.json"
    )


def test_answers_end_with_all_that_the_model_ends_turns_with(policy):
    model, tokenizer = load_policy(policy)
    model.generation_config.eos_token_id = [1, 7]

    assert stop_tokens(model, tokenizer) == {1, 7}


def test_a_model_without_a_chat_template_gets_the_plain_one_and_keeps_it(policy, tmp_path):
    model, tokenizer = load_policy(policy)
    save_policy(model, tokenizer, tmp_path / "saved")

    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == PLAIN_TEMPLATE


def refusal(call, *args, **kwargs):
    with pytest.raises((DataError, RecipeError, PluginError)) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "reads"),
    [(GPT2Config(n_positions=96), 96), (MptConfig(max_seq_len=64), 64), (BloomConfig(), None), (MambaConfig(), None)],
)
def test_a_config_says_how_many_tokens_its_model_reads(config, reads):
    assert positions_of(config) == reads


def test_a_folder_that_is_missing_is_refused(tmp_path):
    assert refusal(check_model_folder, tmp_path / "nowhere") == (
        f"{tmp_path / 'nowhere'}: there is no such model folder; check the address in the recipe"
    )


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    assert refusal(check_model_folder, tmp_path) == (
        f"{tmp_path}: the folder has no config.json, so it is no model; name a model's folder"
    )


def test_a_folder_without_weights_is_refused(policy, tmp_path):
    shutil.copy(policy.path / "config.json", tmp_path)

    assert refusal(load_policy, opened(tmp_path)) == (
        f"{tmp_path}: the model folder has no weights; add its .safetensors files"
    )


class Evil:
    """Pickled, it makes a file when it is read back."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize("damaged", [False, True], ids=["code", "damage"])
def test_pickled_weights_that_are_more_than_tensors_are_refused_unread(policy, tmp_path, damaged):
    shutil.copy(policy.path / "config.json", tmp_path)
    torch.save({"lm_head.weight": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    if damaged:
        (tmp_path / "pytorch_model.bin").write_bytes(b"")

    assert refusal(load_policy, opened(tmp_path)).startswith(f"{tmp_path}: the model cannot be opened (")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "odd", [{"auto_map": {"AutoModel": "x.Y"}}, {"text_config": {"_attn_implementation_internal": "x/y"}}]
)
def test_a_config_that_asks_for_foreign_code_is_refused(policy, tmp_path, odd):
    config = json.loads((policy.path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | odd))
    key = "auto_map" if "auto_map" in odd else "_attn_implementation_internal"

    assert refusal(load_policy, opened(tmp_path)) == (
        f"{tmp_path}: the model's config.json asks for code of its author ({key}); "
        "use a model of an architecture that transformers has itself"
    )


def test_damaged_weights_are_named(policy, tmp_path):
    shutil.copytree(policy.path, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x00" * 64)

    assert refusal(load_policy, opened(tmp_path / "model")).startswith(
        f"{tmp_path / 'model'}: the model cannot be opened ("
    )


def test_an_adapter_whose_base_is_gone_is_refused(adapter):
    file = adapter.path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "nobody/nothing"}))

    assert refusal(load_policy, adapter) == (
        f"{adapter.path}: the adapter's base 'nobody/nothing' is neither a folder nor in the local cache; "
        "correct base_model_name_or_path in its adapter_config.json"
    )


def test_a_layer_that_the_model_lacks_is_refused(policy):
    assert refusal(load_policy, policy, lora=LoRA(targets=("q_prj",))) == (
        "lora.targets: the model has no layers q_prj; did you mean 'q_proj'?"
    )


def test_quantised_weights_cannot_be_trained(policy):
    assert refusal(load_policy, opened(policy.path, load="4bit")) == (
        "source 'policy': weights in 4bit cannot be trained; give the stage lora = {}, or take `load` out of the source"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to quantise on")
def test_quantising_says_what_is_missing(policy):
    assert refusal(load_policy, opened(policy.path, load="4bit"), trainable=False) in (
        'load = "4bit": the package bitsandbytes is missing; pip install "alignkit[4bit]"',
        'load = "4bit": quantised weights need a GPU, and there is none; take `load` out of the source',
    )


def test_an_adapter_on_quantised_weights_is_refused(adapter):
    assert refusal(load_policy, opened(adapter.path, load="8bit"), trainable=False) == (
        f"{adapter.path}: an adapter cannot be merged into weights in 8bit; "
        "merge it into one folder first, or take `load` out of the source"
    )


def test_a_gguf_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF nonsense")

    assert refusal(unpack, tmp_path / "model.gguf", tmp_path / "out").startswith(
        f"{tmp_path / 'model.gguf'}: the file cannot be unpacked ("
    )


@pytest.mark.filterwarnings("ignore::UserWarning")  # the reader hands torch memory that is only read
def test_a_gguf_file_is_unpacked_into_a_plain_folder(policy, tmp_path):
    write_gguf(policy, tmp_path / "tiny.gguf")

    unpack(tmp_path / "tiny.gguf", tmp_path / "out")

    model, tokenizer = load_policy(opened(tmp_path / "out"))
    same(logits(model), logits(load_policy(policy)[0]))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert tokenizer.chat_template == "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_models_with_learnt_positions_are_adapted_too(policy, tmp_path):
    shutil.copytree(policy.path, tmp_path / "gpt2")
    (tmp_path / "gpt2" / "generation_config.json").unlink()
    config = GPT2Config(vocab_size=384, n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=1, bos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")

    model, tokenizer = load_for_reward_training(opened(tmp_path / "gpt2"), LoRA(rank=2))
    save_reward(stirred(model), tokenizer, tmp_path / "saved", ScoreScale(0.0, 1.0))

    again, *_ = load_reward_model(RewardModel(name="reward", fingerprint="0", path=tmp_path / "saved"))
    same(logits(again), logits(model))


@pytest.fixture
def classifier(policy, tmp_path):
    """Somebody's text classifier with two classes, and nothing of ours beside it."""
    folder = tmp_path / "classifier"
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    config = BertConfig(
        vocab_size=384, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, id2label=labels, label2id={v: k for k, v in labels.items()}, pad_token_id=0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy.path).save_pretrained(folder)
    return folder


def answers(*texts):
    return [Answer("how are you?", text, finished=True, row={"prompt": "how are you?"}) for text in texts]


def test_the_logit_of_the_named_class_is_the_score(classifier):
    reward = {"name": "mood", "fingerprint": "0", "path": classifier}

    good = open_reward(RewardModel(**reward, label="POSITIVE"))(answers(" fine", " bad"))
    bad = open_reward(RewardModel(**reward, label="NEGATIVE"))(answers(" fine", " bad"))

    assert len(good) == len(bad) == 2
    assert good != bad


def test_an_answer_longer_than_the_classifier_reads_is_scored_by_its_end(classifier):
    score = open_reward(RewardModel(name="mood", fingerprint="0", path=classifier, label="POSITIVE"))

    assert score(answers(" fine" * 30)) == pytest.approx(score(answers(" fine" * 40)), abs=1e-6)


def test_a_class_must_be_named_where_there_are_several(classifier):
    assert refusal(open_reward, RewardModel(name="mood", fingerprint="0", path=classifier)) == (
        "sources.mood.label: the classifier has several classes (NEGATIVE, POSITIVE); "
        'name the one to be raised, such as label = "POSITIVE"'
    )


def test_a_class_that_the_classifier_lacks_is_refused(classifier):
    assert refusal(open_reward, RewardModel(name="mood", fingerprint="0", path=classifier, label="POSITIV")) == (
        "sources.mood.label: the classifier has no class 'POSITIV'; did you mean 'POSITIVE'?"
    )


def test_scores_do_not_depend_on_what_they_are_batched_with(policy, tmp_path):
    model, tokenizer = load_for_reward_training(policy)
    save_reward(model, tokenizer, tmp_path / "saved", ScoreScale(0.5, 2.0))
    score = open_reward(RewardModel(name="reward", fingerprint="0", path=tmp_path / "saved"))
    given = answers(" fine", " fine thanks for asking", " bad", "")

    assert score(given) == pytest.approx([score([one])[0] for one in given], abs=1e-5)


def test_scores_are_normalised(policy, tmp_path):
    model, tokenizer = load_for_reward_training(policy)
    for name, facts in (("raw", (0.0, 1.0)), ("normal", (0.5, 2.0))):
        save_reward(model, tokenizer, tmp_path / name, ScoreScale(*facts))
    raw, normal = (
        open_reward(RewardModel(name="reward", fingerprint="0", path=tmp_path / name))(answers(" fine", " bad"))
        for name in ("raw", "normal")
    )

    assert normal == pytest.approx([(score - 0.5) / 2.0 for score in raw], abs=1e-5)


def test_an_answer_that_was_cut_is_read_without_an_end(policy):
    _, tokenizer = load_policy(policy)
    cut = Answer("how are you?", " fine", finished=False)

    assert tokenizer.decode(as_read(cut, tokenizer)) == "how are you? fine"


def test_a_chat_is_read_by_the_reward_models_own_template(policy):
    _, tokenizer = load_policy(policy)
    chat = [{"role": "user", "content": "how are you?"}]
    answer = Answer("<|policy's own|> how are you?", "fine", finished=True, row={"prompt": chat})

    assert tokenizer.decode(as_read(answer, tokenizer)) == "### User:\nhow are you?\n\n### Assistant:\nfine<eos>"


def test_a_chats_answer_that_was_cut_is_read_so_too(policy):
    _, tokenizer = load_policy(policy)
    chat = [{"role": "user", "content": "how are you?"}]
    answer = Answer("<|policy's own|> how are you?", "fine", finished=False, row={"prompt": chat})

    assert tokenizer.decode(as_read(answer, tokenizer)) == "### User:\nhow are you?\n\n### Assistant:\nfine"


def test_a_function_that_no_plugin_offers_is_refused(tmp_path):
    reward = FunctionReward(name="gold", fingerprint="0", path=tmp_path, function="no-such-reward")

    assert refusal(open_reward, reward).startswith("sources.gold: no plugin offers a reward 'no-such-reward'; ")


def test_a_reward_that_nobody_can_open_is_refused(tmp_path):
    assert refusal(open_reward, Reward(name="odd", fingerprint="0", path=tmp_path)) == (
        "source 'odd': a Reward cannot score answers"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_policy_of_any_precision_is_saved_as_it_is(policy, tmp_path, dtype):
    model, tokenizer = load_policy(policy)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(40 if weight.dim() > 1 else 1)  # so large that arithmetic in fp32 differs by more than rounding
    model = model.to(dtype)

    save_policy(model, tokenizer, tmp_path / "saved")

    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in model.state_dict().items() if name in saved)
    assert {weight.dtype for weight in saved.values()} == {dtype}


def test_another_models_weights_are_not_taken_for_it_in_half_precision(policy, tmp_path, monkeypatch):
    model, tokenizer = load_policy(policy)
    model = model.to(torch.bfloat16)

    def spoilt(folder, **more):
        with torch.no_grad():
            model.lm_head.weight.mul_(1.2)
        type(model).save_pretrained(model, folder, **more)
        with torch.no_grad():
            model.lm_head.weight.div_(1.2)

    monkeypatch.setattr(model, "save_pretrained", spoilt)

    with pytest.raises(RuntimeError, match=r"the saved model's lm_head\.weight differs from the trained one's by "):
        save_policy(model, tokenizer, tmp_path / "saved")
