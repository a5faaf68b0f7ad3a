"""Text classifiers of others as rewards: read as their own tokenizers cut, pad and frame, whatever their head is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from opened import open_reward
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from alignkit.contract.kinds import RewardModel
from alignkit.contract.reward_function import Answer
from alignkit.errors import AlignkitError
from alignkit.estimate.compatibility import check_reward

READS = 48
"""Tokens that the classifiers here read."""
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
DECODER = {**WIDE, "num_key_value_heads": 1, "max_position_embeddings": READS, "bos_token_id": 0, "eos_token_id": 2}
# RoBERTa and those like it count positions from behind that of the pad token, which is token 0 here; MPNet's is 1.
SHAPES: dict[str, dict[str, Any]] = {
    "BertConfig": {**WIDE, "max_position_embeddings": READS},
    "RobertaConfig": {**WIDE, "max_position_embeddings": READS + 1},
    "XLMRobertaConfig": {**WIDE, "max_position_embeddings": READS + 1},
    "CamembertConfig": {**WIDE, "max_position_embeddings": READS + 1},
    "Data2VecTextConfig": {**WIDE, "max_position_embeddings": READS + 1},
    "MPNetConfig": {**WIDE, "max_position_embeddings": READS + 2},
    "LongformerConfig": {**WIDE, "max_position_embeddings": READS + 1, "attention_window": 8},
    "ElectraConfig": {**WIDE, "embedding_size": 32, "max_position_embeddings": READS},
    "ConvBertConfig": {**WIDE, "embedding_size": 32, "head_ratio": 1, "max_position_embeddings": READS},
    "AlbertConfig": {**WIDE, "embedding_size": 32, "max_position_embeddings": READS},
    "DebertaV2Config": {**WIDE, "max_position_embeddings": READS},
    "DistilBertConfig": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": READS},
    "ModernBertConfig": {**WIDE, "max_position_embeddings": READS, "cls_token_id": 0, "sep_token_id": 2},
    "BartConfig": {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": READS,
        "decoder_start_token_id": 2,
    },
    "XLNetConfig": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
}  # fmt: skip


def write_tokenizer(tiny: Path, folder: Path, **more: Any) -> None:
    """Write the tiny model's tokenizer with `<s>` and `</s>` around every text, as BERT's and RoBERTa's have them."""
    marks = ["<s>", "<pad>", "</s>"]
    facts = json.loads(Tokenizer.from_file(str(tiny / "tokenizer.json")).to_str())
    facts["added_tokens"] = []
    made = Tokenizer.from_str(json.dumps(facts))
    made.add_special_tokens(marks)
    ends = [(mark, made.token_to_id(mark)) for mark in ("<s>", "</s>")]
    made.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    options = {"model_max_length": 10**30, "padding_side": "right", **more}
    PreTrainedTokenizerFast(tokenizer_object=made, **names, **options).save_pretrained(folder)


@pytest.fixture
def classifier(model_folder: Path, tmp_path: Path) -> Callable[..., RewardModel]:
    """Write somebody's classifier, its weights drawn wide enough to tell texts apart."""

    def write(config: str, *, labels: int = 1, tokenizer: dict[str, Any] | None = None, **more: Any) -> RewardModel:
        folder = tmp_path / config
        write_tokenizer(model_folder, folder, **(tokenizer or {}))
        read = AutoTokenizer.from_pretrained(folder)
        shape = {**SHAPES.get(config, DECODER), "vocab_size": len(read), "pad_token_id": read.pad_token_id, **more}
        made = getattr(transformers, config)(**shape, num_labels=labels)
        made.bos_token_id, made.eos_token_id = read.bos_token_id, read.eos_token_id
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(made)
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(folder)
        return RewardModel(name="mood", fingerprint="0", path=folder)

    return write


def answers(*texts: str, finished: bool = True) -> list[Answer]:
    return [Answer("how are you?", text, finished, {"prompt": "how are you?"}) for text in texts]


SHORT, LONG = " fine, and the food was good", " fine, and the food was good" * 12


def by_transformers(reward: RewardModel, text: str) -> float:
    """Score one text as the pipelines of transformers do: alone, cut by its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(reward.path)
    model = AutoModelForSequenceClassification.from_pretrained(reward.path).eval()
    known = {"input_ids", "attention_mask"} | ({"token_type_ids"} if "XLNet" in type(model).__name__ else set())
    read = tokenizer(text, truncation=True, max_length=READS, return_tensors="pt")
    with torch.no_grad():
        return float(model(**{key: value for key, value in read.items() if key in known}).logits[0, 0])


@pytest.mark.parametrize("config", sorted(SHAPES))
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_classifier_scores_long_answers_as_its_own_tokenizer_cuts_them(
    classifier: Callable[..., RewardModel], config: str, side: str
) -> None:
    limit = {"model_max_length": READS} if config == "XLNetConfig" else {}
    padding = {"padding_side": "left"} if config == "XLNetConfig" else {}
    reward = classifier(config, tokenizer={"truncation_side": side, **limit, **padding})

    found = open_reward(reward)(answers(SHORT, LONG, finished=False))

    assert found == pytest.approx([by_transformers(reward, "how are you?" + text) for text in (SHORT, LONG)], abs=1e-4)


def test_a_score_does_not_depend_on_longer_rows_whose_rotary_frequencies_are_others(
    classifier: Callable[..., RewardModel],
) -> None:
    half = WIDE["hidden_size"] // WIDE["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [4.0] * half}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16, **factors}
    more = {"rope_parameters": rope, "original_max_position_embeddings": 16}
    reward = classifier("Phi3Config", tokenizer={"add_bos_token": False}, **more)

    (alone,), (together, _) = open_reward(reward)(answers(" fine")), open_reward(reward)(answers(" fine", SHORT * 2))

    assert together == pytest.approx(alone, abs=1e-5)


def test_what_was_cut_is_told_once_with_the_count(classifier: Callable[..., RewardModel]) -> None:
    told: list[tuple[str, str]] = []
    score = open_reward(classifier("RobertaConfig"), warn=lambda *what: told.append(what))

    score(answers(SHORT))
    score(answers(SHORT, LONG, LONG))
    score(answers(LONG))

    ((problem, remedy),) = told
    assert problem.startswith(
        "2 of 3 answers are longer with their prompts than 'mood' reads (48 tokens), and are scored without their end; "
        "the longest has "
    )
    assert remedy == "lower generation.max_new_tokens or take shorter prompts, or a reward model that reads more"


def test_the_tokenizers_own_limit_counts_too(classifier: Callable[..., RewardModel]) -> None:
    reward = classifier("BertConfig", tokenizer={"model_max_length": 24})
    tokenizer = AutoTokenizer.from_pretrained(reward.path)
    cut = tokenizer.decode(tokenizer("how are you?" + LONG)["input_ids"][1:23])

    assert open_reward(reward)(answers(LONG)) == pytest.approx([by_transformers(reward, cut)], abs=1e-4)


def test_a_decoder_keeps_its_opening_token_and_the_end_of_the_answer(classifier: Callable[..., RewardModel]) -> None:
    reward = classifier("LlamaConfig")
    tokenizer = AutoTokenizer.from_pretrained(reward.path)
    model = AutoModelForSequenceClassification.from_pretrained(reward.path).eval()
    ids = tokenizer("how are you?" + LONG)["input_ids"]
    with torch.no_grad():
        expected = float(model(torch.tensor([[ids[0], *ids[-READS + 1 :]]])).logits[0, 0])

    assert open_reward(reward)(answers(LONG)) == pytest.approx([expected], abs=1e-4)


def refused(reward: RewardModel) -> str:
    with pytest.raises(AlignkitError) as caught:
        check_reward(reward)
    return str(caught.value).replace(str(reward.path), "FOLDER")


def changed_config(reward: RewardModel, without: tuple[str, ...] = (), **facts: Any) -> None:
    file = reward.path / "config.json"
    kept = {key: value for key, value in json.loads(file.read_text()).items() if key not in without}
    file.write_text(json.dumps(kept | facts))


def renamed_head(reward: RewardModel, name: str, bias: float | None = None) -> None:
    """Give the head of a saved reward model another name, and a bias where one is given."""
    file = reward.path / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{name}.weight"] = tensors.pop("score.weight")
    if bias is not None:
        tensors[f"{name}.bias"] = torch.tensor([bias])
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["value_head", "v_head", "reward_head", "rm_head", "score"])
@pytest.mark.parametrize("bias", [None, 0.5])
def test_a_head_by_another_name_and_without_a_word_of_labels_is_opened(
    classifier: Callable[..., RewardModel], name: str, bias: float | None
) -> None:
    reward = classifier("LlamaConfig")
    expected = [score + (bias or 0.0) for score in open_reward(reward)(answers(SHORT, LONG))]
    renamed_head(reward, name, bias)
    changed_config(reward, without=("id2label", "label2id", "num_labels"))

    check_reward(reward)

    assert open_reward(reward)(answers(SHORT, LONG)) == pytest.approx(expected, abs=1e-5)


def test_one_label_in_the_weights_counts_whatever_the_config_says(classifier: Callable[..., RewardModel]) -> None:
    reward = classifier("LlamaConfig")
    expected = open_reward(reward)(answers(SHORT))
    changed_config(reward, id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})

    check_reward(reward)

    assert open_reward(reward)(answers(SHORT)) == expected


def test_a_policys_critic_is_no_reward_model(classifier: Callable[..., RewardModel]) -> None:
    reward = classifier("LlamaConfig")
    renamed_head(reward, "v_head.summary", 0.1)

    assert refused(reward) == (
        "FOLDER: the weights have a critic (v_head.summary), which values a policy's tokens, and no reward model's "
        "head; give the folder of a reward model, or use it as a policy"
    )


def test_a_head_of_other_labels_than_the_config_names_is_refused(classifier: Callable[..., RewardModel]) -> None:
    reward = classifier("BertConfig", labels=3)
    changed_config(reward, id2label={"0": "bad", "1": "good"}, label2id={})

    assert refused(reward) == (
        "FOLDER: config.json tells of 2 labels, and the head in the weights has 3; correct id2label there"
    )


def test_classes_that_are_not_numbered_from_zero_are_refused(classifier: Callable[..., RewardModel]) -> None:
    reward = classifier("BertConfig", labels=2)
    changed_config(reward, id2label={"1": "bad", "2": "good"}, label2id={})

    assert refused(reward.model_copy(update={"label": "good"})) == (
        "FOLDER: config.json names the classes 1, 2 in id2label, and the head has the classes 0 to 1; "
        "correct id2label there"
    )


def test_a_class_that_config_and_config_number_differently_is_refused(classifier: Callable[..., RewardModel]) -> None:
    reward = classifier("BertConfig", labels=2)
    changed_config(reward, id2label={"0": "bad", "1": "good"}, label2id={"good": 0, "bad": 1})

    assert refused(reward.model_copy(update={"label": "good"})) == (
        "FOLDER: config.json calls class 1 'good' in id2label, and class 0 in label2id; correct the one that is wrong"
    )


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_the_logit_of_the_label_is_the_score_whatever_the_problem(
    classifier: Callable[..., RewardModel], problem_type: str
) -> None:
    reward = classifier("BertConfig", labels=2, problem_type=problem_type)

    first = open_reward(reward.model_copy(update={"label": "LABEL_0"}))(answers(SHORT))

    assert first == pytest.approx([by_transformers(reward, "how are you?" + SHORT)], abs=1e-4)


def test_a_label_that_is_missing_or_unknown_is_found_before_the_weights_are_loaded(
    classifier: Callable[..., RewardModel],
) -> None:
    reward = classifier("BertConfig", labels=2, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})

    assert refused(reward) == (
        "sources.mood.label: the classifier has several classes (bad, good); "
        'name the one to be raised, such as label = "good"'
    )
    assert refused(reward.model_copy(update={"label": "goood"})) == (
        "sources.mood.label: the classifier has no class 'goood'; did you mean 'good'?"
    )


def test_weights_that_do_not_fit_the_config_are_told_with_both_sizes(classifier: Callable[..., RewardModel]) -> None:
    reward = classifier("LlamaConfig")
    changed_config(reward, vocab_size=100)

    with pytest.raises(AlignkitError) as caught:
        open_reward(reward)

    size = len(AutoTokenizer.from_pretrained(reward.path))
    assert str(caught.value) == (
        f"{reward.path}: the weights do not fit config.json: model.embed_tokens.weight is ({size}, 32) in the files "
        "and (100, 32) by it; correct the config, or copy the folder again"
    )


def test_weights_that_are_missing_are_refused_and_not_drawn_anew(classifier: Callable[..., RewardModel]) -> None:
    reward = classifier("LlamaConfig")
    file = reward.path / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "layers.1." not in name}
    save_file(tensors, file, metadata={"format": "pt"})

    with pytest.raises(AlignkitError, match="9 of the model's 21 weights are in none of its files"):
        open_reward(reward)
