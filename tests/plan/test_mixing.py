"""Mixes as recipes say them: what they read, what they are refused for, and whose fingerprints they change."""

from pathlib import Path

import pytest
from planning import Desk, make_desk, write_rows

from alignkit.contract.mix import Mix

HEAD = """
[sources]
base = { policy = "model" }
chats = { demonstrations = "demos.jsonl", keep = ["level"] }
code = { demonstrations = "code.jsonl" }
asked = { prompts = "prompts.jsonl" }
asked-too = { prompts = "prompts.jsonl" }
texts = { text = "texts.jsonl" }
length = { reward = "function:length", settings.target = 9 }
"""
TUNE = f'{HEAD}[stage.tune]\nmethod = "sft"\ninputs.demos = ["chats", "code"]\n'


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = make_desk(tmp_path)
    write_rows(tmp_path / "demos.jsonl", [{"prompt": "a?", "completion": "a.", "level": 2}])
    write_rows(tmp_path / "code.jsonl", [{"prompt": "b?", "completion": "b."}])
    write_rows(tmp_path / "texts.jsonl", [{"text": "a b"}])
    return desk


def test_sources_that_are_weighed_need_no_other_name(desk: Desk) -> None:
    text = f'{HEAD}[stage.tune]\nmethod = "sft"\nmix.weights = {{ code = 1, chats = 3 }}\n'

    stage = desk.plan(text).stage("tune")

    assert stage.inputs["demos"] == ("code", "chats")
    assert stage.mix == Mix(weights={"code": 1, "chats": 3})


def test_what_a_mix_says_can_be_set_from_outside(desk: Desk) -> None:
    plan = desk.plan(f"{TUNE}mix.weights = {{ chats = 3, code = 1 }}\n", {"tune.mix.weights.code": "2"})

    assert plan.stage("tune").mix == Mix(weights={"chats": 3, "code": 2})


def test_rows_that_are_read_so_often_by_their_mix_are_read_once_by_the_method(desk: Desk) -> None:
    plan = desk.plan(f"{TUNE}mix.epochs.code = 4\n")

    assert plan.stage("tune").settings.model_dump()["epochs"] == 1.0


def test_a_mix_changes_the_fingerprint_and_names_of_sources_do_not(desk: Desk) -> None:
    def fingerprint(text: str) -> str | None:
        return desk.plan(text).stage("tune").fingerprint

    mixed = f"{TUNE}mix.weights = {{ chats = 3, code = 1 }}\n"
    prints = [fingerprint(TUNE), fingerprint(mixed), fingerprint(mixed.replace("code = 1", "code = 2"))]

    assert len(set(prints)) == 3
    assert fingerprint(mixed.replace("chats", "talks")) == prints[1]


def test_a_mix_of_what_another_method_takes_stands_by(desk: Desk) -> None:
    text = f"{TUNE}mix.weights = {{ chats = 3, code = 1 }}\n".replace('"sft"', '"clm"')

    stage = desk.plan(text).stage("tune")

    assert stage.mix is None
    assert "mix" in stage.standing_by


@pytest.mark.parametrize(
    ("mix", "problem"),
    [
        ("mix = 3", "mix must be a table; write mix.weights = { NAME = 3, NAME = 1 }"),
        ("mix.wieghts = { a = 1 }", "mix.wieghts: unknown setting; did you mean 'weights'?"),
        ("mix = {}", "mix: it says nothing; write weights, shares, epochs, temperature or order"),
        (
            "mix = { epochs = { code = 2 }, shares = { code = 0.5 } }",
            "mix: shares and epochs both say how often sources are read; leave one of them out",
        ),
        ("mix.weights = { chats = 0, code = 0 }", "mix: all weights are 0, so nothing would be read"),
        ("mix.weights.chats = -1", "mix.weights.chats: must be greater than or equal to 0, and is -1"),
        ("mix.shares = { chats = 0.7, code = 0.5 }", "mix: shares sum to 1.2, and may sum to 1"),
        (
            "mix.shares = { chats = 0.2, code = 0.5 }",
            "mix.shares: shares of all sources sum to 0.7, and must sum to 1; leave one of them out, and it gets the "
            "rest",
        ),
        (
            "mix.shares = { chats = 1 }",
            "mix.shares: shares sum to 1, and leave nothing for 'code'; lower them, or give it the share 0, to be "
            "measured only",
        ),
        ("mix.weights = { chats = 1 }", "mix.weights: 'code' has no weight; 0 leaves it out"),
        (
            "mix.weights = { chats = 1, code = 1, coed = 1 }",
            "mix.weights.coed: 'coed' is not among what sft takes as demos; did you mean 'code'?",
        ),
        (
            "method = 'sft'\ninputs.demos = 'chats'\nmix.temperature = 2",
            "mix.temperature: there is one source, 'chats', so nothing is mixed; name the others under inputs.demos, "
            "or leave it out",
        ),
        (
            "mix = { temperature = 2, descending = true }",
            "mix: descending does nothing without order; say by which column rows are ordered",
        ),
        (
            "sft.epochs = 2\nmix.epochs.code = 4",
            "mix.epochs: it says how often rows are read, and so does sft.epochs; leave one of them out",
        ),
        (
            "mix.order = 'level'",
            "mix.order: source 'code' does not keep the column 'level'; write sources.code.keep = [\"level\"]",
        ),
        (
            "method = 'clm'\ninputs.corpus = 'texts'\nmix.order = 'level'",
            "mix.order: texts are cut into blocks, which have no order; leave it out",
        ),
        (
            "method = 'ppo'\ninputs.prompts = ['asked', 'asked-too']\nmix.epochs.asked = 2",
            "mix.epochs: ppo asks as many prompts as its updates need, whatever their number; write weights or shares",
        ),
        (
            "method = 'evaluate'\ninputs.prompts = 'asked'\nmix.order = 'level'",
            "mix: evaluate reads rows in an order of its own, and cannot mix them; leave mix out",
        ),
    ],
)
def test_a_mix_that_cannot_be_is_refused_by_the_plan(desk: Desk, mix: str, problem: str) -> None:
    stage = mix if mix.startswith("method") else f'method = "sft"\ninputs.demos = ["chats", "code"]\n{mix}'

    (told, *_) = desk.problems(f"{HEAD}[stage.tune]\n{stage}\n")

    assert told.partition("stage 'tune': ")[2] == problem


def test_a_mix_names_what_its_round_takes(desk: Desk) -> None:
    rounds = '[repeat]\nstages = ["tune"]\nrounds = 2\nsplit = ["chats"]\n'

    plan = desk.plan(f"{rounds}{TUNE}mix.weights = {{ chats = 3, code = 1 }}\n")

    for number in (1, 2):
        stage = plan.stage(f"tune-{number}")
        assert stage.mix is not None
        assert list(stage.mix.weights) == list(stage.inputs["demos"])
        assert stage.inputs["demos"][0] != "chats"
