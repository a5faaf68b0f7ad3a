"""Heads of text classifiers, as a folder's weights have them: how many labels, which logit is the score, what is odd.

The config often does not say: OpenRLHF and others leave the number of labels out, and some call the head by another
name than transformers does. What a safetensors file says at its beginning is enough to know, before it is loaded.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from alignkit.contract.kinds import RewardModel
from alignkit.data.adapter_folder import is_adapter
from alignkit.errors import DataError, RecipeError, near_miss
from alignkit.training.weight_files import (
    REWARD_FILE,
    chain_of,
    pickled_in,
    read_json,
    root_of,
    scale_of,
    shapes_in,
)

Shapes = Mapping[str, tuple[int, ...]]
OTHERS = re.compile(
    r"(.*\.)?(score|score_head|reward|reward_head|rm_head|regression_head|value_head|v_head)(\.summary)?"
)
"""What others call the layer that makes one score of the last hidden state: OpenRLHF, DeepSpeed-Chat, TRL."""
CRITIC = "v_head.summary"
"""The name under which TRL keeps the critic of a policy."""


@dataclass(frozen=True)
class Head:
    """The last layer of a classifier, as its weights have it."""

    labels: int
    name: str
    """Of its tensors in the files, without what follows the last dot."""
    ours: str
    """The name that transformers gives it."""
    folder: Path
    """Where its weights lie: the model's folder, or one that this stands on."""

    @property
    def renaming(self) -> dict[str, str]:
        """Return what to call its tensors while they are loaded, as `from_pretrained` takes it."""
        return {} if self.name == self.ours else {f"^{re.escape(self.name)}\\.": f"{self.ours}."}


def head_of(folder: Path) -> Head | None:
    """Find the head in a classifier's folder, or an adapter's; None where no file that can be read early has one.

    Raises DataError where the weights hold the critic of a policy, or several layers that may be the head.
    """
    config = AutoConfig.from_pretrained(root_of(folder), trust_remote_code=False, local_files_only=True)
    names = _names_of_heads(config)
    for place in chain_of(folder):
        shapes = shapes_in(place)
        for name in names:
            if name in shapes:
                layer = name.rpartition(".")[0]
                return Head(shapes[name][0], layer, layer, place)
        if names == ["score.weight"] and (named := _by_another_name(place, shapes)):
            return Head(shapes[f"{named}.weight"][0], named, "score", place)
    return None


def _names_of_heads(config: Any) -> list[str]:
    """Return the names of the weights whose size is the number of labels.

    The classifier is built on the meta device, which holds no numbers, for two numbers of labels.
    """
    key = f"{type(config).__name__} {config.to_json_string(use_diff=False)}"
    if key not in _names_of:
        _names_of[key] = _tried_names(config)
    return _names_of[key]


_names_of: dict[str, list[str]] = {}


def _tried_names(config: Any) -> list[str]:
    sizes = []
    for labels in (2, 3):
        wanted = copy.deepcopy(config)
        wanted.num_labels = labels
        make: Any = AutoModelForSequenceClassification
        try:
            with torch.device("meta"):
                model = make.from_config(wanted, trust_remote_code=False)
        except ValueError:  # an architecture that transformers has no classifier of
            return ["score.weight"]
        sizes.append({name: tuple(weight.shape) for name, weight in model.named_parameters()})
    two, three = sizes
    return [name for name in two if two[name] != three[name] and len(two[name]) == 2]


def _by_another_name(folder: Path, shapes: Shapes) -> str | None:
    """Find the layer that others use as the head where transformers has `score`."""
    layers = (name.rpartition(".")[0] for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2)
    found = [layer for layer in layers if OTHERS.fullmatch(layer)]
    if not found:
        return None
    if any(layer.endswith(CRITIC) for layer in found):
        problem = f"the weights have a critic ({found[0]}), which values a policy's tokens, and no reward model's head"
        raise DataError(problem, str(folder), "give the folder of a reward model, or use it as a policy")
    if len(found) > 1:
        problem = f"the weights have several layers that may be the score's head: {', '.join(sorted(found))}"
        raise DataError(problem, str(folder), "take out those that are not")
    return found[0]


def bias_of(head: Head) -> Tensor | None:
    """Read what the head adds to every score, which transformers' decoders have no place for."""
    for file in sorted(head.folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                if name.endswith(f"{head.name}.bias"):
                    bias: Tensor = tensors.get_tensor(name)
                    return bias
    pickled = pickled_in(head.folder, "cpu")
    return next((tensor for name, tensor in pickled.items() if name.endswith(f"{head.name}.bias")), None)


def labels_of(folder: Path, head: Head | None) -> int | None:
    """Return how many labels to open a classifier with; None where only its config can tell.

    Raises DataError where config and weights contradict each other, and no single score decides.
    """
    if head is None:
        return None
    stated = _stated(folder)
    if stated is not None and stated != head.labels and head.labels != 1:
        problem = f"config.json tells of {stated} labels, and the head in the weights has {head.labels}"
        raise DataError(problem, str(folder), "correct id2label there")
    return head.labels


def _stated(folder: Path) -> int | None:
    """Return the number of labels that a config states; transformers takes two where it says nothing."""
    config = read_json(root_of(folder) / "config.json")
    if isinstance(config.get("id2label"), dict) and not is_adapter(folder):
        return len(config["id2label"])
    return int(config["num_labels"]) if isinstance(config.get("num_labels"), int) and not is_adapter(folder) else None


def places_of_score(reward: RewardModel, config: Any, labels: int) -> list[int]:
    """Return the places of the logits that are the score: those of all heads of a reward model that has several, else
    the one that `place_of` tells.

    Raise what that raises, RecipeError where a head is named as if it were a class, and DataError where reward.json
    tells of other heads than the weights have.
    """
    heads = len(scale_of(reward.path).heads)
    if not heads:
        return [place_of(reward, config, labels)]
    if reward.label is not None:
        problem = f"the reward model has {heads} heads, of which the mean is the score, and no classes"
        raise RecipeError(problem, f"sources.{reward.name}.label", "leave label out")
    if heads != labels:
        problem = f"{REWARD_FILE} tells of {heads} heads, and the weights have {labels}"
        raise DataError(problem, str(reward.path), "copy the folder again")
    return list(range(heads))


def place_of(reward: RewardModel, config: Any, labels: int) -> int:
    """Return the place of the class whose logit is the score: the only one, or the one that the source's label names.

    Raises RecipeError where the label is missing or unknown, DataError where the config names other classes than
    the head has.
    """
    where = f"sources.{reward.name}.label"
    names = _names(reward, config, labels)
    if reward.label is None:
        if labels == 1:
            return 0
        remedy = f'name the one to be raised, such as label = "{names[-1]}"'
        raise RecipeError(f"the classifier has several classes ({', '.join(names)})", where, remedy)
    if reward.label not in names:
        remedy = near_miss(reward.label, names) or f"it has {', '.join(names)}"
        raise RecipeError(f"the classifier has no class {reward.label!r}", where, remedy)
    if names.count(reward.label) > 1:
        problem = f"the classifier has {names.count(reward.label)} classes that are called {reward.label!r}"
        raise RecipeError(problem, where, "give each a name of its own in its config.json")
    place = names.index(reward.label)
    other = (getattr(config, "label2id", None) or {}).get(reward.label, place)
    if int(other) != place:
        problem = f"config.json calls class {place} {reward.label!r} in id2label, and class {other} in label2id"
        raise DataError(problem, str(reward.path), "correct the one that is wrong")
    return place


def _names(reward: RewardModel, config: Any, labels: int) -> Sequence[str]:
    """Name a classifier's classes in the order of its logits."""
    named = {int(place): str(name) for place, name in (getattr(config, "id2label", None) or {}).items()}
    if labels == 1 and sorted(named) != [0]:
        return ["LABEL_0"]
    if sorted(named) == list(range(labels)):
        return [named[place] for place in range(labels)]
    if all(name == f"LABEL_{place}" for place, name in named.items()):  # nobody has named them
        return [f"LABEL_{place}" for place in range(labels)]
    given = ", ".join(map(str, sorted(named)))
    problem = f"config.json names the classes {given} in id2label, and the head has the classes 0 to {labels - 1}"
    raise DataError(problem, str(reward.path), "correct id2label there")
