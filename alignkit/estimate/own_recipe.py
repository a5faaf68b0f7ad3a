"""A recipe of one's own files: the chain that they allow, with lengths that fit them, and why each line is there."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignkit.contract.kinds import SOURCE_KINDS, Artifact, Policy, Records, RewardModel
from alignkit.contract.method import Method
from alignkit.data.records import key_of, on_held_out_side
from alignkit.environment import set_environment
from alignkit.errors import AlignkitError, DataError, RecipeError
from alignkit.estimate.desk import Desk, desk_for
from alignkit.noise import ENOUGH_ROWS
from alignkit.plan.choosing import choices_for
from alignkit.plan.pin import pin
from alignkit.plan.plan import Plan
from alignkit.plan.planner import plan_recipe
from alignkit.plugins import Plugins
from alignkit.recipe.recipe import recipe_of
from alignkit.sources.address import SCHEMES, is_hub_name
from alignkit.sources.from_files import reads
from alignkit.sources.own_files import OwnFile

COVERED = 0.95
"""Share of the rows that must fit; methods stop where more than 5 of 100 are cut or left out."""
LARGE = 1_000_000_000
"""Weights from which on small added matrices are trained instead of them."""
CHARACTERS = 3
"""Of a token, where no tokenizer is at hand: English has 4, other languages fewer."""
STEP = 32
"""Lengths are multiples of this."""
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
NAMES = {
    "text": "corpus",
    "demonstrations": "demos",
    "preferences": "pairs",
    "ratings": "ratings",
    "prompts": "prompts",
}


@dataclass(frozen=True)
class Wish:
    """What the owner of the files wants."""

    path: Path
    """Where the recipe will stand."""
    model: str
    files: Sequence[OwnFile]
    plugins: Plugins
    runs: Path
    online: bool = False
    """Train a reward model of pairs, and learn from the policy's own answers."""


@dataclass(frozen=True)
class Fit:
    """What is known of rows and model."""

    counted: str = ""
    """In what lengths were counted, and of what."""
    max_length: int | None = None
    max_lost: float | None = None
    """Where the model reads less than the rows need."""
    new_tokens: int | None = None
    prompts: int | None = None
    """To evaluate on, where fewer are held out than usual."""
    words: int = 50
    """Of the middle answer."""
    held_out: float = SHARES[0]
    weights: int | None = None


@dataclass(frozen=True)
class StagePart:
    """A stage of the recipe."""

    name: str
    method: str
    why: str
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lines: Sequence[tuple[str, object, str]] = ()
    """Further settings, each with its reason."""


def own_recipe(wish: Wish) -> str:
    """Return the text of a recipe for these files. It can be planned as it is.

    Raises RecipeError or DataError where the files allow no chain, or rows are bad.
    """
    set_environment(offline=True)
    _check_model(wish.model)
    sources = {name: file for file in wish.files for name in [_name(file, wish.files)]}
    if not sources.keys() - {name for name, file in sources.items() if file.word == "prompts"}:
        raise RecipeError("prompts alone teach nothing", remedy="give demonstrations, pairs, ratings or text, too")
    if wish.online and not any(file.word == "preferences" for file in wish.files):
        raise RecipeError(
            "a reward is learnt from pairs, and none are given", "--online", "leave it out, or give pairs"
        )
    sources |= _prompts(wish, sources)
    draft = _plan(wish, written(wish, sources, Fit()))
    text = written(wish, sources, fitted(wish, draft))
    _plan(wish, text)
    return text


def _check_model(model: str) -> None:
    """Refuse a model that is nowhere, before its line in a recipe that nobody has seen is named."""
    if not model.startswith(SCHEMES) and not Path(model).expanduser().exists():
        hint = f"if it is on the hub: --model hf:{model}" if is_hub_name(model) else "check its path"
        raise RecipeError(f"there is no {model!r}", "--model", hint)


def _name(file: OwnFile, files: Sequence[OwnFile]) -> str:
    """Return what the recipe calls a file's source: by its kind, numbered where there are several."""
    alike = [one for one in files if one.word == file.word]
    number = alike.index(file) + 1
    return NAMES[file.word] + (f"-{number}" if number > 1 else "")


def _prompts(wish: Wish, sources: Mapping[str, OwnFile]) -> dict[str, OwnFile]:
    """Return a source of prompts to evaluate on: those of the other rows, where none is given."""
    if any(file.word == "prompts" for file in sources.values()):
        return {}
    kind = SOURCE_KINDS["prompts"]
    for file in sources.values():
        columns = {ours: theirs for ours, theirs in file.options.get("columns", {}).items() if ours == "prompt"}
        if columns or (file.word != "text" and issubclass(kind, Records) and reads(file.files[0], kind)):
            return {"prompts": OwnFile(file.what, "prompts", file.files, {"columns": columns} if columns else {})}
    return {}


def _plan(wish: Wish, text: str) -> Plan:
    return plan_recipe(recipe_of(wish.path, text), wish.plugins, runs=wish.runs)


def learner(plugins: Plugins, word: str, makes: type[Artifact] = Policy) -> tuple[Method, str]:
    """Choose the method that learns from rows of one kind alone, built-in ones first; give it with their role.

    Raises RecipeError where no installed package has one.
    """
    choice, role = next(choices_for(plugins, SOURCE_KINDS[word], makes), (None, ""))
    if choice is None:
        raise RecipeError(f"no installed method learns from {word}", remedy="pip install alignkit-dpo")
    return choice.method, role


def chain(wish: Wish, sources: Mapping[str, OwnFile]) -> Iterator[StagePart]:
    """Yield the stages that the files allow, in their order."""
    names = {word: [name for name, file in sources.items() if file.word == word] for word in NAMES}
    stages = [("text", "pretrain", "reads on"), ("demonstrations", "finetune", "imitates")]
    for word, stage, does in stages:
        if names[word]:
            method, role = learner(wish.plugins, word)
            yield StagePart(stage, method.name, f"{does} what {_listed(names[word])} hold", {role: names[word]})
    online = wish.online or not _offers(wish.plugins, "preferences")
    if names["preferences"] and online:
        method, role = learner(wish.plugins, "preferences", RewardModel)
        yield StagePart("reward", method.name, "learns from pairs which answer is better", {role: names["preferences"]})
        asked = {"prompts": names["prompts"]} if names["prompts"] else {}
        yield StagePart("align", "ppo", "answers prompts, and learns from the reward of its answers", asked)
    for word, stage in (("preferences", "align"), ("ratings", "judged" if names["preferences"] else "align")):
        if names[word] and not (word == "preferences" and online):
            method, role = learner(wish.plugins, word)
            why = f"learns from {word} directly; others that do: alignkit methods --for {word}"
            yield StagePart(stage, method.name, why, {role: names[word]})


def _offers(plugins: Plugins, word: str) -> bool:
    try:
        return bool(learner(plugins, word))
    except RecipeError:
        return False


def written(wish: Wish, sources: Mapping[str, OwnFile], fit: Fit) -> str:
    """Write the recipe."""
    stages = list(chain(wish, sources))
    judged = any(stage.name == "reward" for stage in stages)
    policies = [stage.name for stage in stages if stage.name != "reward"]
    lines = ['name = "mine"', "seed = 17", "", "[sources.base]"]
    lines += [_assign("policy", _address(wish, wish.model), "where training starts")]
    for name, file in sources.items():
        lines += ["", f"[sources.{name}]", _assign(file.word, _address(wish, file.what), _reason(file, sources))]
        lines += [_assign(*one) for one in _read_how(file, fit)]
    if any(file.word == "prompts" for file in sources.values()) and not judged:
        why = "only measured; put a reward of yours here: alignkit methods"
        lines += ["", "[sources.length]", _assign("reward", "function:length", why)]
        lines += [_assign("settings.target", fit.words, "words of your middle answer: nearer to it is better")]
    if defaults := list(_defaults(fit)):
        lines += ["", "[defaults]", *(_assign(*one) for one in defaults)]
    for stage in [*stages, *_scores(sources, policies, judged, fit)]:
        lines += ["", f"[stage.{stage.name}]", _assign("method", stage.method, stage.why)]
        lines += [_assign(f"inputs.{role}", list(given), "") for role, given in stage.inputs.items()]
        lines += [_assign(f"{stage.method}.{key}", value, why) for key, value, why in stage.lines]
    return "\n".join(lines) + "\n"


def _scores(sources: Mapping[str, OwnFile], policies: Sequence[str], judged: bool, fit: Fit) -> Iterator[StagePart]:
    """Yield the stage that measures the start and the end, where there are prompts to ask."""
    prompts = [name for name, file in sources.items() if file.word == "prompts"]
    if not prompts:
        return
    lines: list[tuple[str, object, str]] = []
    if fit.new_tokens:
        lines.append(("max_new_tokens", fit.new_tokens, "95 of 100 of your answers end within it, and a quarter more"))
    if fit.prompts:
        lines.append(("prompts", fit.prompts, "as many as are held out"))
    inputs = {"policies": ["base", policies[-1]], "rewards": ["reward" if judged else "length"], "prompts": prompts}
    yield StagePart("scores", "evaluate", "the start and the end answer the same held-out prompts", inputs, lines)


REASONS = {
    "text": "raw text to read on with",
    "demonstrations": "prompts with the answers to imitate",
    "preferences": "prompts with a better and a worse answer",
    "ratings": "answers that are judged one by one",
    "prompts": "prompts to answer",
}


def _reason(file: OwnFile, sources: Mapping[str, OwnFile]) -> str:
    again = file.word == "prompts" and any(file.what == one.what and one is not file for one in sources.values())
    return "the same rows again, of which the prompts alone are read" if again else REASONS[file.word]


def _read_how(file: OwnFile, fit: Fit) -> Iterator[tuple[str, object, str]]:
    """Yield what a source says besides its address."""
    if "format" in file.options:
        yield "format", file.options["format"], "as chats, for the model's chat template"
    for ours, theirs in file.options.get("columns", {}).items():
        yield f"columns.{ours}", theirs, "told by the column's name; check it"
    if fit.held_out != SHARES[0]:
        yield "held_out", fit.held_out, "kept aside to measure on, the same prompts in all sources; they are few"


def _defaults(fit: Fit) -> Iterator[tuple[str, object, str]]:
    """Yield the settings of all stages."""
    if fit.max_length:
        yield "max_length", fit.max_length, fit.counted
    if fit.max_lost:
        yield "max_lost", fit.max_lost, "the model reads no more, so this share of the rows may be cut or left out"
    if fit.weights and fit.weights >= LARGE:
        why = f"the model has {fit.weights / 1e9:.3g} billion weights: small added matrices are trained instead"
        yield "lora", {"rank": 16, "alpha": 32}, why


def _address(wish: Wish, what: str) -> str:
    """Return an address as the recipe says it, whose paths begin where it stands."""
    inner = Path(what).expanduser()
    return what if what.startswith(SCHEMES) or inner.is_absolute() else os.path.relpath(inner, wish.path.parent)


def _assign(key: str, value: object, why: str) -> str:
    return f"{key} = {_toml(value)}" + (f"  # {why}" if why else "")


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)


def fitted(wish: Wish, draft: Plan) -> Fit:
    """Measure the rows of a draft: by the model's tokenizer where it is at hand, else by their characters."""
    desk, errors = desk_for(draft, wish.runs, offline=True)
    if errors:
        raise DataError.of([problem for error in errors for problem in error.problems])
    _check_forms(desk)
    fit = _shares(desk)
    try:
        return _by_tokens(_pinned(wish, desk), fit)
    except AlignkitError:
        return _by_characters(wish, desk, fit)


def _check_forms(desk: Desk) -> None:
    """Refuse chats and plain text of one kind, which no stage joins."""
    forms: dict[tuple[str, bool], str] = {}
    for name, audit in desk.audits.items():
        source = desk.plan.sources[name]
        forms.setdefault((source.word, audit.chats), source.address)
    for (word, chats), address in forms.items():
        if chats and (word, False) in forms:
            problem = f"{address} holds chats, and {forms[word, False]} plain text"
            raise RecipeError(problem, remedy="write all rows in one form, or give those of one")


def _records(desk: Desk) -> list[tuple[str, Records]]:
    """Return the records of a desk by their kind's word."""
    sources = [desk.plan.sources[name] for name in desk.audits]
    return [(source.word, desk.open(source)) for source in sources]


def _shares(desk: Desk) -> Fit:
    """Choose how much is held out, and say how long the middle answer is."""
    keys, words = set[str](), list[int]()
    for word, records in _records(desk):
        rows = [*records.train(), *records.held_out()]
        keys |= {key_of(row) for row in rows} if word == "prompts" else set()
        words += [len(text.split()) for row in rows for text in _answers(row)]
    aside = [sum(on_held_out_side(key, share) for key in keys) for share in SHARES]
    wanted = max(1, min(ENOUGH_ROWS, len(keys) // 5))
    place = next((place for place, count in enumerate(aside) if count >= wanted), len(SHARES) - 1)
    prompts = aside[place] if keys and aside[place] < 256 else None
    middle = sorted(words)[len(words) // 2] if words else 50
    return Fit(held_out=SHARES[place] if keys else SHARES[0], prompts=prompts, words=max(1, middle))


def _answers(row: Mapping[str, Any]) -> Iterator[str]:
    for column in ("completion", "chosen", "messages"):
        value = row.get(column)
        if isinstance(value, str):
            yield value
        elif value:
            yield str(value[-1].get("content", ""))


def _pinned(wish: Wish, desk: Desk) -> Desk:
    """Return the desk with the model's commit, where the hub's cache has it."""
    if desk.plan.sources["base"].fingerprint:
        return desk
    pin(desk.plan, wish.runs, offline=True)
    return replace(desk, plan=_plan(wish, desk.plan.recipe.text))


def _by_tokens(desk: Desk, fit: Fit) -> Fit:
    from transformers.utils import logging

    from alignkit.estimate.counting import count_tokens
    from alignkit.estimate.sizes import sizes_of
    from alignkit.training.configs import open_config, positions_of
    from alignkit.training.lengths import answer_limit

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    base = desk.plan.sources["base"]
    config = open_config(desk.open(base).path)
    counted = {name: count_tokens(desk, desk.plan.sources[name], base, "all").rows for name in desk.audits}
    word = {name: desk.plan.sources[name].word for name in counted}
    longest = {name: [row.longest for row in rows] for name, rows in counted.items() if word[name] != "text"}
    runs = [row.run for name in longest if word[name] != "prompts" for row in counted[name]]
    found = _lengths(fit, {name: (word[name], rows) for name, rows in longest.items()}, answer_limit(runs))
    said = f"{found.counted}, counted by the model's tokenizer" if found.max_length else ""
    return _within(replace(found, counted=said, weights=sizes_of(config).weights), positions_of(config), longest)


def _by_characters(wish: Wish, desk: Desk, fit: Fit) -> Fit:
    longest: dict[str, tuple[str, list[int]]] = {}
    answers: list[int] = []
    for name in desk.audits:
        source = desk.plan.sources[name]
        records = desk.open(source)
        rows = [*records.train(), *records.held_out()]
        longest[name] = source.word, [len(json.dumps(row, ensure_ascii=False)) // CHARACTERS for row in rows]
        answers += [len(text) // CHARACTERS for row in rows for text in _answers(row)]
    from alignkit.training.lengths import answer_limit

    rows_only = {name: one for name, one in longest.items() if one[0] != "text"}
    found = _lengths(fit, rows_only, answer_limit(answers))
    said = f"{found.counted}, estimated from characters: the model's tokenizer is not on this machine"
    billions = re.search(r"(\d+(?:\.\d+)?)[bB]\b", wish.model)
    weights = int(float(billions[1]) * 1e9) if billions else None
    return replace(found, counted=said if found.max_length else "", weights=weights)


def _lengths(fit: Fit, rows: Mapping[str, tuple[str, Sequence[int]]], new_tokens: int | None) -> Fit:
    """Return the length that 95 of 100 rows of each source need, a prompt with its answer."""
    answer = new_tokens or 0
    needed = [_covered(lengths) + (answer if word == "prompts" else 0) for word, lengths in rows.values() if lengths]
    length = STEP * math.ceil(max(needed) / STEP) if needed else None
    why = "tokens of a prompt with its answer: 95 of 100 of your rows fit"
    return replace(fit, max_length=length, new_tokens=new_tokens, counted=why)


def _covered(lengths: Sequence[int]) -> int:
    return sorted(lengths)[math.ceil(COVERED * len(lengths)) - 1]


def _within(fit: Fit, positions: int | None, longest: Mapping[str, Sequence[int]]) -> Fit:
    """Cut lengths to what the model reads, and say how many rows that costs."""
    if positions is None or fit.max_length is None or fit.max_length <= positions:
        return fit
    answer = min(fit.new_tokens or 0, positions // 2)
    lost = max(
        sum(length > positions - (answer if name.startswith("prompts") else 0) for length in rows) / len(rows)
        for name, rows in longest.items()
    )
    share = min(1.0, math.ceil(100 * lost + 1) / 100)
    return replace(fit, max_length=positions, new_tokens=answer or None, max_lost=share if lost > 1 - COVERED else None)
