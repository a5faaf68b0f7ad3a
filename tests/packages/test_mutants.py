"""What is wrong with a method is caught by its suite, which passes the same method where nothing is."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from pydantic import PositiveFloat, PositiveInt

from alignkit import Method, Policy, Preferences, Prompts, RowSettings, Settings, Stage, method
from alignkit.testing import Conformance, conformance, same_weights, write_inputs

SETTINGS = {"learning_rate": 1e-2, "batch": 16, "precision": "fp32"}


class SimPOSettings(RowSettings):
    """Settings of `simpo`."""

    beta: PositiveFloat = 2.0
    """How sharply a difference of average log-probabilities decides."""


class Otherwise:
    """A stage of which some things are not as they are."""

    def __init__(self, stage: Stage, **facts: Any) -> None:
        self._stage = stage
        self.__dict__.update(facts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)


def lost_tokenizer(folder: Path) -> None:
    """Lose what the tokenizer was set to, as a method does that saves another one."""
    file = folder / "tokenizer_config.json"
    facts = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(facts | {"pad_token": facts["eos_token"]}), "utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def simpo(mutant: str = "") -> Method:
    @method("simpo", results=("accuracy",))
    def simpo(settings: SimPOSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
        """Prefer the chosen answers by their average log-probability."""
        from torch.nn.functional import logsigmoid

        from alignkit.kit import load_policy, map_pairs, pair_logprobs, read_pairs, train_pairs

        facts: dict[str, dict[str, Any]] = {
            "the seed of the stage is ignored": {"seed": 0},
            "the checkpoint is ignored": {"latest": lambda: None},
            "each process does all the work": {"world": 1},
        }
        stage = Otherwise(stage, **facts.get(mutant, {}))
        if mutant == "the learning rate is ignored":
            settings = settings.model_copy(update={"learning_rate": 1e-2})
        if mutant == "the epochs are ignored":
            settings = settings.model_copy(update={"epochs": 1.0})
        if mutant == "a setting of its own is ignored":
            settings = settings.model_copy(update={"beta": 2.0})
        model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
        train, held_out = read_pairs(pairs, model, tokenizer, settings, stage)
        if mutant == "held-out rows are learnt":
            train = [*train, *held_out]

        def loss(part: Sequence[Any]) -> Any:
            tables = pair_logprobs(model, part)
            lengths = tables[0].new_tensor([[len(pair.chosen.answer), len(pair.rejected.answer)] for pair in part])
            chosen, rejected = (table.sum(dim=1) / lengths[:, side] for side, table in enumerate(tables))
            lead = rejected - chosen if mutant == "the sign is wrong" else chosen - rejected
            return -logsigmoid(settings.beta * lead), {"lead": (chosen - rejected).detach()}

        train_pairs(model, train, loss, settings, stage)
        if mutant != "no result is told":
            right = map_pairs(model, held_out, lambda part: (loss(part)[1]["lead"] > 0).float(), settings)
            floor = None if mutant == "a result is told beside nothing" else 0.5
            stage.result("accuracy", None, right.mean().item(), floor=floor, rows=len(held_out))
        made = stage.save_policy(model, tokenizer)
        if mutant == "the tokenizer is not saved":
            lost_tokenizer(made.path)
        return made

    return simpo


class PickSettings(Settings):
    """Settings of `pick`."""

    rows: PositiveInt = 4
    """Rows that are picked."""


def pick(mutant: str = "") -> Method:
    @method("pick")
    def pick(settings: PickSettings, stage: Stage, *, prompts: Prompts) -> Prompts:
        """Pick some prompts at random."""
        seed = {"the seed of the stage is ignored": 0, "rows change from run to run": None}.get(mutant, stage.seed)
        count = 4 if mutant == "a setting of its own is ignored" else settings.rows

        def picked() -> Iterator[dict[str, Any]]:
            for side, held_out in ((prompts.train(), False), (prompts.held_out(), True)):
                rows = [row["prompt"] for row in side]
                for row in random.Random(seed).sample(rows, min(count, len(rows))):
                    yield {"prompt": row, "held_out": held_out and mutant != "held-out rows stray"}

        return stage.save_rows(Prompts, picked())

    return pick


CAUGHT: list[tuple[Callable[[str], Method], str, str]] = [
    (simpo, "the seed of the stage is ignored", "test_another_seed_makes_something_else"),
    (simpo, "the tokenizer is not saved", "test_the_tokenizer_is_saved_as_it_was_given"),
    (simpo, "the sign is wrong", "test_what_it_learns_gets_better"),
    (simpo, "held-out rows are learnt", "test_rows_that_are_held_out_are_not_learnt"),
    (simpo, "no result is told", "test_it_tells_a_result_beside_what_it_was_or_what_anybody_reaches"),
    (simpo, "a result is told beside nothing", "test_it_tells_a_result_beside_what_it_was_or_what_anybody_reaches"),
    (simpo, "the learning rate is ignored", "test_a_setting_has_an_effect"),
    (simpo, "the epochs are ignored", "test_a_setting_has_an_effect"),
    (simpo, "a setting of its own is ignored", "test_a_setting_has_an_effect"),
    (simpo, "the checkpoint is ignored", "test_stopped_and_resumed_it_makes_the_same"),
    (simpo, "each process does all the work", "test_several_processes_share_the_work_or_are_refused"),
    (pick, "rows change from run to run", "test_the_same_seed_makes_the_same"),
    (pick, "the seed of the stage is ignored", "test_another_seed_makes_something_else"),
    (pick, "a setting of its own is ignored", "test_a_setting_has_an_effect"),
    (pick, "held-out rows stray", "test_rows_stay_on_the_side_of_their_prompt"),
]
SUITES: dict[Callable[[str], Method], type[Conformance]] = {
    simpo: conformance(simpo(), SETTINGS),
    pick: conformance(pick(), {}),
}


def asked(suite: type[Conformance], test: str, request: pytest.FixtureRequest) -> None:
    """Run one test of a suite."""
    function = getattr(suite(), test)
    function(**{name: request.getfixturevalue(name) for name in signature(function).parameters})


@pytest.mark.parametrize(
    ("make", "mutant", "test"), CAUGHT, ids=[f"{make.__name__}: {name}" for make, name, _ in CAUGHT]
)
def test_the_suite_catches(
    make: Callable[[str], Method], mutant: str, test: str, request: pytest.FixtureRequest
) -> None:
    mutated = conformance(make(mutant), dict(SUITES[make].settings))

    with pytest.raises((AssertionError, KeyError)):
        asked(mutated, test, request)


@pytest.mark.parametrize(
    ("make", "test"),
    sorted({(make, test) for make, _, test in CAUGHT}, key=str),
    ids=lambda one: getattr(one, "__name__", one),
)
def test_the_suite_passes_what_is_right(
    make: Callable[[str], Method], test: str, request: pytest.FixtureRequest
) -> None:
    asked(SUITES[make], test, request)


def test_no_two_policies_of_the_inputs_are_the_same(tmp_path: Path) -> None:
    @method("distil")
    def distil(settings: RowSettings, stage: Stage, *, teacher: Policy, student: Policy) -> Policy:
        """Learn from a teacher."""
        return student

    inputs = write_inputs(distil, tmp_path)

    assert not same_weights(inputs["teacher"], inputs["student"])


def test_inputs_of_an_author_are_laid_over_ours(tmp_path: Path) -> None:
    mine = write_inputs(simpo(), tmp_path / "mine")["policy"]

    inputs = write_inputs(simpo(), tmp_path, {"policy": mine})

    assert inputs["policy"] is mine
    assert isinstance(inputs["pairs"], Preferences)
