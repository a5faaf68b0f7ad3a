"""Text classifiers with one score on any decoder, also where transformers has none for its architecture.

A reward model reads its score at an answer's last token, a critic at every one; both need a decoder and a linear layer
on its last hidden states. transformers' own classes are taken where they are that.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from alignkit.training.packing import FAILURES, decoder_of, name_decoder


def scorer_for(config: Any) -> Any:
    """Return what opens a language model's weights under a head with one score: transformers' class, else our own."""
    known = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or has_score(config)
    return AutoModelForSequenceClassification if known else _our_class(type(config))


def made_scorer(config: Any) -> Any:
    """Make a classifier of a config, with weights drawn anew, in fp32."""
    kind: Any = scorer_for(config)
    by_name = kind is AutoModelForSequenceClassification
    return kind.from_config(config, trust_remote_code=False, dtype=torch.float32) if by_name else kind(config)


def scorer_named_by(config: Any) -> Any:
    """Return what opens a text classifier that was saved: what its config names."""
    named = getattr(config, "architectures", None) or []
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not has_score(config):
        ours: Any = _our_class(type(config))
        adapted = ours.causal.__name__ in named  # an adapter with a score stands on a language model
        if adapted or ours.__name__ in named or type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            return ours
    return AutoModelForSequenceClassification


_scores: dict[type, bool] = {}


def has_score(config: Any) -> bool:
    """Return whether transformers has a classifier for an architecture that is a decoder with a linear `score`."""
    kind = type(config)
    if kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return False
    if kind not in _scores:
        make: Any = AutoModelForSequenceClassification
        try:
            with torch.device("meta"):
                _scores[kind] = isinstance(getattr(make.from_config(copy.deepcopy(config)), "score", None), nn.Linear)
        except FAILURES:
            _scores[kind] = False
    return _scores[kind]


_ours: dict[type, type[PreTrainedModel]] = {}


def _our_class(config: type) -> type[PreTrainedModel]:
    """Return our classifier for the architecture of a config; it is made once."""
    if config not in _ours:
        _ours[config] = _made_class(config)
    return _ours[config]


def _made_class(config: type) -> type[PreTrainedModel]:
    """Make a classifier for the architecture of a config, of the class of its language model.

    Weights are named as in the language model, so that its folders open, too.
    """
    language_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config]
    family = [one for one in language_model.__mro__ if issubclass(one, PreTrainedModel) and one is not PreTrainedModel]
    stem = language_model.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    known = config in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    name = f"{stem}WithScore" if known else f"{stem}ForSequenceClassification"
    # transformers reads the source of a class's module to learn what its architecture can.
    facts = {"causal": language_model, "config_class": config, "__module__": language_model.__module__}
    return type(name, (_Scorer, family[-1]), facts)


def _blank(config: type) -> PreTrainedModel:
    kind = _our_class(config)
    return kind.__new__(kind)


class _Scorer:
    """What our classifiers have besides what their architecture's models have in common."""

    causal: Any
    """The class of the language model."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # of the architecture
        ours: Any = self
        whole = self.causal(config)
        name_decoder(whole)
        decoder = decoder_of(whole)
        type(ours).base_model_prefix = next(name for name, part in whole.named_children() if part is decoder)
        setattr(ours, ours.base_model_prefix, decoder)
        words = whole.get_input_embeddings()
        ours.words = next(name for name, part in whole.named_modules() if part is words)
        width = whole.get_output_embeddings().in_features if whole.get_output_embeddings() else _width(config)
        ours.num_labels = config.num_labels
        ours.score = nn.Linear(width, config.num_labels, bias=False)
        ours.post_init()

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled and copied although no module holds the class."""
        ours: Any = self
        return _blank, (type(ours.config),), self.__dict__

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding, which stands where the language model has it."""
        ours: Any = self
        found: nn.Module = ours.get_submodule(ours.words)
        return found

    def set_input_embeddings(self, value: nn.Module) -> None:
        ours: Any = self
        ours.set_submodule(ours.words, value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **options: Any,
    ) -> SequenceClassifierOutput:
        """Score rows (n, t), filled up on either side, at the last token that the mask (n, t) has: logits (n, labels).

        Without a mask that is the last one that is not pad.
        """
        ours: Any = self
        passed = {name: value for name, value in options.items() if value is not None and name not in UNUSED}
        inputs = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        if attention_mask is not None:
            passed["attention_mask"] = attention_mask
        hidden: Tensor = getattr(ours, ours.base_model_prefix)(**inputs, **passed).last_hidden_state
        scores: Tensor = ours.score(hidden)
        rows = torch.arange(len(scores), device=scores.device)
        return SequenceClassifierOutput(logits=scores[rows, self._ends(input_ids, attention_mask, scores)])

    def _ends(self, ids: Tensor | None, mask: Tensor | None, scores: Tensor) -> Tensor:
        ours: Any = self
        pad = ours.config.get_text_config().pad_token_id
        if mask is None and ids is not None and pad is not None:
            mask = ids != pad
        if mask is None:
            return torch.full((len(scores),), scores.shape[1] - 1, device=scores.device)
        places = torch.arange(scores.shape[1], device=scores.device)
        return (places * mask.to(places)).argmax(dim=-1)


UNUSED = ("labels", "return_dict", "output_attentions", "output_hidden_states", "task_ids")
"""What PEFT hands to every classifier, and a score has no use for."""


def _width(config: Any) -> int:
    return int(config.get_text_config().hidden_size)
