"""A stage of a run and a stage of the test kit: one script of calls, the same answers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alignkit_pytest
from alignkit import DataError, Demonstrations, FunctionReward, RecipeError, Scores, StageError, Text
from alignkit.contract.events import Result, Sample, Warned
from alignkit.plugins import load_plugins
from alignkit.run.order import Order
from alignkit.run.stopping import Stop
from alignkit.run.working_stage import Left, WorkingStage
from alignkit.store import rundir
from alignkit.store.journal import read_journal
from alignkit.testing import RecordingStage

PRINT = "0" * 64
Attempt = Callable[[], WorkingStage]


def of_a_run(runs: Path) -> WorkingStage:
    """Return the next attempt at a stage, as a worker makes it."""
    partial = rundir.partial_folder(runs, "stage", PRINT)
    partial.mkdir(parents=True, exist_ok=True)
    order = Order(attempt="", stage="stage", method="count", settings={}, inputs={}, seed=17, fingerprint=PRINT)
    return WorkingStage(order, partial, Stop(), 0, None, load_plugins)


@pytest.fixture(params=[of_a_run, RecordingStage], ids=["run", "test kit"])
def attempt(request: pytest.FixtureRequest, tmp_path: Path) -> Attempt:
    return lambda: request.param(tmp_path / "place")


def noting(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "note.txt").write_text(text) and None


def refused(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises((DataError, StageError, RecipeError)) as refusal:
        call(*arguments)
    return refusal.value.problem


def test_rows_that_are_none_of_their_kind_are_refused(attempt: Attempt) -> None:
    stage = attempt()

    assert refused(stage.save_rows, Demonstrations, [{"prompt": "a"}]).startswith("demonstrations need the columns")
    assert refused(stage.save_rows, Text, [{"text": 3}]) == "'text' must be text, and is 3"
    assert refused(stage.save_rows, Text, []) == "it made no row at all"


def test_columns_that_all_rows_have_are_kept(attempt: Attempt) -> None:
    rows = [{"text": "one", "source": "a", "odd": 1}, {"text": "two", "source": "b"}]

    made = attempt().save_rows(Text, [row | {"held_out": False} for row in rows])

    assert list(made.train()) == [{"source": "a", "text": "one"}, {"source": "b", "text": "two"}]
    assert list(made.held_out()) == []


def test_what_is_saved_twice_is_replaced(attempt: Attempt) -> None:
    stage = attempt()
    stage.save_rows(Scores, [{"policy": "first"}])

    made = stage.save_rows(Scores, [{"policy": "second"}])

    assert made.rows() == [{"policy": "second"}]


def test_a_checkpoint_is_for_the_next_attempt(attempt: Attempt) -> None:
    first = attempt()
    assert first.latest() is None

    first.commit(3, noting("three"))

    assert first.latest() is None
    found = attempt().latest()
    assert found is not None
    assert (found.name, (found / "note.txt").read_text()) == ("step-3", "three")


def test_a_step_that_is_committed_twice_is_replaced(attempt: Attempt) -> None:
    stage = attempt()
    stage.commit(3, noting("once"))
    stage.commit(3, noting("twice"))

    found = attempt().latest()

    assert found is not None
    assert (found / "note.txt").read_text() == "twice"


def test_a_damaged_checkpoint_is_passed_over(attempt: Attempt) -> None:
    stage = attempt()
    stage.commit(1, noting("one"))
    stage.commit(2, noting("two"))
    found = attempt().latest()
    assert found is not None
    (found / "note.txt").write_text("odd")

    older = attempt().latest()

    assert older is not None
    assert older.name == "step-1"


def test_leaving_is_no_exception_that_a_method_could_take_for_a_failure(attempt: Attempt) -> None:
    with pytest.raises(Left):
        attempt().leave()

    assert not issubclass(Left, Exception)


def test_folders_are_there_when_they_are_asked_for(attempt: Attempt) -> None:
    stage = attempt()

    (stage.folder / "scratch.txt").write_text("x")
    (stage.cache / "kept.txt").write_text("y")

    again = attempt()
    assert (again.folder / "scratch.txt").read_text() == "x"
    assert (again.cache / "kept.txt").read_text() == "y"


@pytest.mark.parametrize(
    ("after", "floor", "told"),
    [
        (0.457, 0.889, True),
        (0.5, 0.5, True),
        (float("nan"), 0.5, True),
        (0.51, 0.5, False),
        (0.1, None, False),
        (None, 0.5, False),
    ],
)
def test_a_result_that_anybody_reaches_is_warned_of(
    tmp_path: Path, after: float | None, floor: float | None, told: bool
) -> None:
    stage = RecordingStage(tmp_path)

    stage.result("accuracy", None, after, floor, rows=200)

    problem = f"accuracy is {after or 0:.3g}, no better than the {floor or 0:.3g} that anybody reaches"
    assert stage.warnings == [(problem, "train longer or with another learning rate, or look at the data")] * told


ODD = b"caf\xe9.txt".decode("utf-8", "surrogateescape")


def test_half_a_character_is_told_as_its_escape(attempt: Attempt) -> None:
    stage = attempt()

    stage.warn(f"{ODD} is odd", "rename it")
    stage.result(ODD, None, 1.0)
    stage.sample({"answer": ODD, ODD: 1.0})
    made = stage.save_rows(Text, [{"text": "one", "from": ODD, "held_out": False}])

    told = read_journal("stage", Path(stage._partial))
    assert Warned("stage", "caf\\udce9.txt is odd", "rename it") in told
    assert [event.name for event in told if isinstance(event, Result)] == ["caf\\udce9.txt"]
    assert [dict(event.row) for event in told if isinstance(event, Sample)] == [
        {"answer": "caf\\udce9.txt", "caf\\udce9.txt": 1.0}
    ]
    assert next(iter(made.train()))["from"] == "caf\\udce9.txt"


def test_a_reward_is_opened_with_the_plugins_of_the_stage(attempt: Attempt, tmp_path: Path) -> None:
    def named(function: str) -> FunctionReward:
        return FunctionReward(name="gold", fingerprint="0", path=tmp_path, function=function)

    stage = attempt()

    assert stage.open_reward(named("reviews-gold"))([]) == []
    assert refused(stage.open_reward, named("zebra")).startswith("no plugin offers a reward 'zebra'")


def test_the_test_kit_opens_what_a_plugin_file_offers(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from alignkit import Settings, hookimpl, reward\n"
        "class Plain(Settings): pass\n"
        "@reward('words')\n"
        "def words(answers, settings: Plain):\n"
        "    return [0.0 for _ in answers]\n"
        "@hookimpl\n"
        "def alignkit_rewards():\n"
        "    return [words]\n"
    )
    given = FunctionReward(name="gold", fingerprint="0", path=tmp_path, function="words")

    assert RecordingStage(tmp_path / "stage", plugin_files=[file]).open_reward(given)([]) == []


def test_the_test_kit_remembers_over_attempts_what_was_told_by_the_last_commit(tmp_path: Path) -> None:
    first = RecordingStage(tmp_path)
    first.log(1, 2, {"loss": 0.5})
    first.commit(1, noting("one"))
    first.log(2, 2, {"loss": 0.25})

    again = first.again()
    again.log(2, 2, {"loss": 0.125})

    assert again.logs == [(1, 2, {"loss": 0.5}), (2, 2, {"loss": 0.125})]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["values"] for line in lines] == [{"loss": 0.5}, {"loss": 0.125}]


@pytest.mark.slow
def test_fixtures_have_our_name_and_cost_other_peoples_tests_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(
        "import sys\n"
        "def test_theirs():\n"
        "    assert not {'alignkit', 'pydantic', 'torch'} & sys.modules.keys()\n"
        "def test_ours(alignkit_stage, alignkit_records, alignkit_tiny_policy):\n"
        "    assert alignkit_stage.latest() is None\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:alignkit", "-p", "alignkit_pytest"]

    ended = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert "2 passed" in ended.stdout, ended.stdout
    fixtures = [name for name, value in vars(alignkit_pytest).items() if "Fixture" in type(value).__name__]
    assert fixtures == ["alignkit_tiny_policy", "alignkit_stage", "alignkit_records"]
