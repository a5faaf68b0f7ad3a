"""Stages that run at the same time: which begin when, what fails and what is stopped beside others."""

import os
import signal
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import pytest
from light_recipes import PLUGIN, desk_with, dotted

from alignkit import Event, Metrics, RecipeError, StageError, StageFailed, StageFinished, StageStarted
from alignkit.contract.events import Stopping
from alignkit.errors import NotFiniteError
from alignkit.plan.plan import Plan
from alignkit.plan.planner import make_plan
from alignkit.run.machine import Machine
from alignkit.run.run_result import RunResult
from alignkit.run.runner import StoppedError, run_plan
from alignkit.run.side_by_side import dealt, error_of_all, lack_of_memory
from alignkit.run.stopping import Stop
from alignkit.serve.serving import Rollouts, Serving
from alignkit.store import rundir
from alignkit.store.journal import read_journal
from alignkit.store.runs import KeptRun

RECIPE = """
name = "wide"
seed = 1
result = ["loud", "c"]
[stage.a]
method = "count"
count.steps = 3
count.seconds = 0.3
[stage.b]
method = "count"
count.steps = 10
count.seconds = 0.12
[stage.c]
method = "count"
count.steps = 2
[stage.loud]
method = "shout"
inputs.text = "a"
[stage.louder]
method = "shout"
inputs.text = "loud"
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a recipe in it."""
    return desk_with(RECIPE, tmp_path, monkeypatch)


def plan(*result: str, **overrides: object) -> Plan:
    return make_plan("light.toml", set={"result": [*result], **dotted(overrides)}, plugins=[PLUGIN])


def run(made: Plan, **more: Any) -> RunResult:
    return run_plan(made, **({"jobs": 2} | more))


def told(heard: list[Event], kind: type[Event]) -> list[str]:
    return [event.stage for event in heard if isinstance(event, kind)]


def test_stages_that_wait_for_nothing_run_at_the_same_time_and_make_what_they_make_one_by_one() -> None:
    made, heard = plan("b", "c", "loud"), list[Event]()

    result = run(made, observers=[heard.append])
    one_by_one = run_plan(made, inline=True, runs="others")

    names = ["a", "b", "c", "loud"]
    moments = [(event.stage, type(event)) for event in heard if isinstance(event, StageStarted | StageFinished)]
    running = list(accumulate(1 if kind is StageStarted else -1 for _, kind in moments))
    assert max(running) == 2
    assert {name for name, _ in moments[:2]} == {"a", "b"}
    assert moments.index(("loud", StageStarted)) > moments.index(("a", StageFinished))
    assert [stage.name for stage in result.stages] == [stage.name for stage in one_by_one.stages] == names
    assert list(result.kept.facts["stages"]) == names
    for apart, alone in zip(result.stages, one_by_one.stages, strict=True):
        assert apart.folder.name == alone.folder.name
        assert apart.artifact.fingerprint == alone.artifact.fingerprint
    assert [event.step for event in heard if isinstance(event, Metrics) and event.stage == "b"] == list(range(1, 11))


def test_a_stage_that_fails_ends_nothing_but_what_needs_it() -> None:
    made, heard = plan("b", "c", "loud", a__count__fail="user"), list[Event]()

    with pytest.raises(StageError) as raised:
        run(made, observers=[heard.append])

    lies = rundir.partial_folder(Path("runs"), "a", str(made.stage("a").fingerprint))
    expected = f"stage 'a', step 2: the loss is NaN; lower the learning rate; see {lies / rundir.LOG}"
    assert (str(raised.value), raised.value.status) == (expected, 76)
    assert told(heard, StageFailed) == ["a"]
    assert sorted(told(heard, StageFinished)) == ["b", "c"]
    kept = KeptRun(Path("runs/wide/latest").resolve())
    states = [stage.state for stage in kept.stages if stage.wanted]
    assert (kept.state, states) == ("failed", ["not finished", "finished", "finished", "not begun"])


def test_all_stages_that_fail_are_told_and_those_that_were_stopped_go_without_saying() -> None:
    failed, other = NotFiniteError("the loss is NaN", "stage 'a'", "lower it"), StageError("broken", "stage 'c'")
    stopped = [StoppedError("b", 130), StoppedError("d", 130)]

    error = error_of_all([stopped[0], failed, other])

    assert str(error) == "stage 'a': the loss is NaN; lower it\nstage 'c': broken"
    assert (error.status, error_of_all([other, *stopped]), error_of_all(stopped)) == (76, other, stopped[0])


def test_nothing_begins_before_the_gates_that_stand_before_it() -> None:
    heard: list[Event] = []

    with pytest.raises(StageError, match="10 is below its minimum 11"):
        run(plan("a", "b", "c", b__gates__steps__min=11), observers=[heard.append])

    assert sorted(told(heard, StageStarted)) == ["a", "b"]


def slow(**more: object) -> Plan:
    return plan("b", "c", c__count__steps=12, c__count__seconds=0.12, **more)


def test_a_signal_stops_all_stages_and_each_keeps_what_it_has_learnt() -> None:
    heard, stop = list[Event](), Stop()

    def interrupting(event: Event) -> None:
        heard.append(event)
        if set(told(heard, Metrics)) == {"b", "c"} and not stop.asked:
            stop.signals.append(signal.SIGTERM)

    with pytest.raises(StoppedError) as raised:
        run(slow(), observers=[interrupting], stop=stop)

    assert raised.value.status == 143
    assert len(told(heard, Stopping)) == 1
    assert sorted(told(heard, StageFailed)) == ["b", "c"]
    heard.clear()
    run(slow(), observers=[heard.append])
    assert [event.resumed for event in heard if isinstance(event, StageStarted)] == [True, True]
    for name, steps in ("b", 10), ("c", 12):
        journal = read_journal(name, rundir.stage_folder(Path("runs"), name, str(slow().stage(name).fingerprint)))
        assert [event.step for event in journal if isinstance(event, Metrics)] == list(range(1, steps + 1))


def test_a_second_signal_ends_all_stages_at_once(here: Path) -> None:
    (here / "light.toml").write_text('result = ["a", "b"]\n[stage.a]\nmethod = "nap"\n[stage.b]\nmethod = "nap"\n')
    heard, stop = list[Event](), Stop()

    def insisting(event: Event) -> None:
        heard.append(event)
        if len(told(heard, Metrics)) == 2 and not stop.asked:
            stop.signals += [signal.SIGINT, signal.SIGINT]

    began = time.monotonic()
    with pytest.raises(StoppedError):
        run(plan("a", "b", a__nap__stepped=True, b__nap__stepped=True), observers=[insisting], stop=stop)

    assert time.monotonic() - began < 30
    assert sorted(told(heard, StageFailed)) == ["a", "b"]


@pytest.mark.parametrize(
    ("result", "chain"), [(["a"], True), (["louder"], True), (["a", "b"], False), (["louder", "b"], False)]
)
def test_a_plan_says_whether_its_stages_could_run_at_the_same_time(result: list[str], chain: bool) -> None:
    assert plan(*result).is_chain == chain


def test_what_stands_before_with_gates_is_waited_for() -> None:
    made = plan("b", "loud", a__gates__steps__min=1)

    assert [made.waits_for(made.stage(name)) for name in ("a", "b", "loud")] == [set(), {"a"}, {"a"}]


def test_stages_cannot_run_at_the_same_time_in_one_process() -> None:
    with pytest.raises(RecipeError) as raised:
        run(plan("a"), inline=True)

    expected = "--inline --jobs 2: inline, stages run one after another in this process; leave one of the two out"
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("rollouts", "what"),
    [
        ({"urls": ["http://10.0.0.7:8000"]}, "give their weights to the same servers"),
        ({"vllm": "vllm", "gpus": [6, 7]}, "start servers on the same GPUs"),
    ],
)
def test_stages_that_would_share_a_server_do_not_run_at_the_same_time(rollouts: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError) as raised:
        run(plan("a"), machine=Machine(rollouts=Rollouts.model_validate(rollouts)))

    remedy = "leave it out, or let the machine's rollouts have vllm alone: each stage starts a server of its own"
    assert str(raised.value) == f"--jobs 2: stages that run at the same time would {what}; {remedy}"


def test_stages_that_would_start_reward_servers_on_the_same_gpus_do_not_run_at_the_same_time() -> None:
    with pytest.raises(RecipeError) as raised:
        run(plan("a"), machine=Machine(rewards=Serving(vllm="vllm", gpus=(5,))))

    assert "would start servers on the same GPUs; leave it out, or let the machine's rewards" in str(raised.value)


@pytest.mark.parametrize(
    ("gpus", "jobs", "processes", "each"),
    [
        ([], 2, 4, [(), ()]),
        (["0", "1", "2"], 2, 1, [("0",), ("1",)]),
        (["3", "5", "GPU-8", "7"], 2, 2, [("3", "5"), ("GPU-8", "7")]),
    ],
)
def test_stages_get_gpus_of_their_own(gpus: list[str], jobs: int, processes: int, each: list[tuple[str, ...]]) -> None:
    assert dealt(gpus, jobs, processes) == each


@pytest.mark.parametrize(
    ("gpus", "processes", "message"),
    [
        (2, 1, "--jobs 3: 3 stages need one GPU each, and there are 2; take --jobs 2"),
        (5, 2, "--jobs 3: 3 stages need 2 GPUs each, and there are 5; take --jobs 2"),
        (1, 2, "--jobs 3: 3 stages need 2 GPUs each, and there are 1; take a machine with fewer processes"),
    ],
)
def test_more_stages_than_there_are_gpus_for_are_refused(gpus: int, processes: int, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        dealt([*map(str, range(gpus))], 3, processes)

    assert str(raised.value) == message


def test_a_stage_waits_where_memory_is_lacking_beside_others() -> None:
    needed = {"a": 2.0 * 2**30, "b": 3.0 * 2**30, "c": 1.0 * 2**30}

    said = [lack_of_memory("b", beside, needed, 4.5 * 2**30) for beside in ([], ["c"], ["d"], ["a"], ["c", "d"])]
    assert said == [
        "",
        "",
        "",
        "waiting: b and a need about 5.0 GiB of memory together, and this machine has 4.5 GiB",
        "",
    ]


def test_a_process_that_starts_stages_and_dies_ends_those_that_run_and_starts_those_that_wait(
    here: Path,
) -> None:
    heard, killed = list[Event](), list[int]()

    def killing(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Metrics) and not killed:
            killed.append(psutil.Process().children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(StageError) as raised:
        run(plan("b", "c", "loud", a__count__seconds=0.3, b__count__seconds=0.3), observers=[killing])

    assert raised.value.status == 71
    assert sorted(told(heard, StageFailed)) == ["a", "b"]
    assert told(heard, StageFinished) == ["c"]
