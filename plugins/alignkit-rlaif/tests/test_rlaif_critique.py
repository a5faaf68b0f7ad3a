"""Critique and revision, by the policy or by the judge; demonstrations of what was chosen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alignkit_rlaif import critique, revise
from alignkit_rlaif.critique import _like
from loopback import Server, says, serving

from alignkit import Judge, Policy, Preferences, Prompts, RecipeError, StageError, Text
from alignkit.testing import RecordingStage, run_method, write_records, write_tiny_policy


@pytest.fixture
def roomy(tmp_path: Path) -> Policy:
    made = write_tiny_policy(tmp_path / "roomy")
    config = json.loads((made.path / "config.json").read_text("utf-8"))
    (made.path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}), "utf-8")
    return made


def answering(body: dict[str, Any]) -> Any:
    """Criticise, revise into a fixed text, and prefer that text."""
    turns = body["messages"]
    if len(turns) == 3:
        return says("  A much better reply. ")
    if "what is wrong" in turns[0]["content"]:
        return says("It is unclear.")
    return says("A" if "[Reply A]\nA much better" in turns[0]["content"] else "B")


def ran(tmp_path: Path, policy: Policy, address: str, settings: Any, **options: Any) -> tuple[RecordingStage, Any]:
    words = ["food", "room", "day", "rain", "fine", "one", "two", "three"]
    prompts = write_records(Prompts, tmp_path / "prompts", [{"prompt": f"the {word}"} for word in words])
    own = write_records(Text, tmp_path / "own", [{"text": "Be clear."}])
    stage = RecordingStage(tmp_path / "stage")
    judge = Judge(name="critic", fingerprint="0", path=policy.path, address=address, options=options)
    given = {"policy": policy, "prompts": prompts, "judge": judge, "constitution": own}
    return stage, run_method(critique, {"max_new_tokens": 700, "max_length": 2048, **settings}, stage, **given)


def asked_of(server: Server, turns: int) -> list[str]:
    return [body["messages"][-1]["content"] for body in server.asked if len(body["messages"]) == turns]


def test_the_judges_revision_is_chosen_over_the_first_answer(tmp_path: Path, roomy: Policy) -> None:
    with serving(answering) as server:
        stage, made = ran(tmp_path, roomy, "openai:m", {"by": "judge"}, url=server.url)

    rows = [*made.train(), *made.held_out()]
    assert rows
    assert {row["chosen"].strip() for row in rows} == {"A much better reply."}
    assert "worse" not in stage.results
    assert all("Be clear." in text for text in asked_of(server, 1))
    assert asked_of(server, 3)[0].startswith("Now write the reply anew")


def test_revisions_that_the_judge_likes_less_are_dropped(tmp_path: Path, roomy: Policy) -> None:
    def contrary(body: dict[str, Any]) -> Any:
        reply = answering(body)
        asks = "Which reply" in body["messages"][0]["content"]
        return says("B" if reply["choices"][0]["message"]["content"] == "A" else "A") if asks else reply

    with serving(contrary) as server, pytest.raises(StageError) as refusal:
        ran(tmp_path, roomy, "openai:m", {"by": "judge"}, url=server.url)

    assert refusal.value.remedy == "take a policy or a judge that writes better revisions"


def test_a_policy_can_revise_itself(tmp_path: Path, roomy: Policy) -> None:
    def longer(body: dict[str, Any]) -> Any:
        parts = body["messages"][0]["content"].split("[Reply ")
        return says("A" if len(parts[1]) > len(parts[2].partition("Which reply")[0]) else "B")

    with serving(longer) as server:
        _, made = ran(tmp_path, roomy, "openai:m", {}, url=server.url)

    rows = [*made.train(), *made.held_out()]
    assert rows
    assert all(len(row["chosen"].strip()) >= len(row["rejected"].strip()) for row in rows)
    assert all(len(body["messages"]) == 1 for body in server.asked)


def test_a_judge_that_writes_nothing_cannot_revise(tmp_path: Path, roomy: Policy) -> None:
    with pytest.raises(RecipeError) as refusal:
        ran(tmp_path, roomy, "rule:reviews-gold", {"by": "judge"})

    assert str(refusal.value) == (
        "stage 'stage': critique.by: the judge 'rule:reviews-gold' writes nothing; "
        'set it to "policy", or take a judge that does'
    )


def test_a_revision_begins_like_the_answer() -> None:
    assert (_like(" new ", " old"), _like(" new", "old")) == (" new", "new")


Make = Callable[..., Preferences]


def test_chosen_answers_become_demonstrations_once_and_on_their_side(
    alignkit_stage: RecordingStage, alignkit_records: Make
) -> None:
    row = {"prompt": "a", "chosen": " b", "rejected": " c"}
    pairs = alignkit_records(
        Preferences,
        [row, row | {"rejected": " d"}, row | {"chosen": " e", "p_chosen": 0.6}],
        [{"prompt": "f", "chosen": " g", "rejected": " h"}],
    )

    run_method(revise, {"certain": 0.7}, alignkit_stage, pairs=pairs)

    lines = (alignkit_stage.root / "artifact" / "data.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": "a", "completion": " b", "held_out": False},
        {"prompt": "f", "completion": " g", "held_out": True},
    ]


def test_no_pair_that_is_certain_enough_is_told(alignkit_stage: RecordingStage, alignkit_records: Make) -> None:
    pairs = alignkit_records(Preferences, [{"prompt": "a", "chosen": " b", "rejected": " c", "p_chosen": 0.6}])

    with pytest.raises(StageError) as refusal:
        run_method(revise, {"certain": 0.9}, alignkit_stage, pairs=pairs)

    assert str(refusal.value) == "no pair of 1 is certain enough; lower revise.certain"
