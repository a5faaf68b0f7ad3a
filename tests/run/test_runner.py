"""A run: what is finished is reused, what fails says so and keeps the rest, what is stopped goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from light_recipes import PLUGIN, desk_with, dotted, light_recipe

from alignkit import (
    Event,
    Metrics,
    Result,
    StageError,
    StageFailed,
    StageFinished,
    StageStarted,
    Text,
    Warned,
    run_recipe,
)
from alignkit.contract.events import Doing, from_json, to_json
from alignkit.errors import DataError, LockedError, RecipeError
from alignkit.plan.plan import Plan
from alignkit.plan.planner import make_plan
from alignkit.run.machine import SHAPE, Machine, read_machine
from alignkit.run.reuse import reusable
from alignkit.run.run_result import RunResult
from alignkit.run.runner import StoppedError, run_plan
from alignkit.run.stopping import Stop
from alignkit.store import rundir
from alignkit.store.durable import read_json
from alignkit.store.file_hashes import FileHashes
from alignkit.store.journal import read_journal
from alignkit.store.locks import hold
from alignkit.store.results import find_finished

RECIPE = light_recipe()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a recipe in it."""
    return desk_with(RECIPE, tmp_path, monkeypatch)


def plan(**overrides: object) -> Plan:
    return make_plan("light.toml", set=dotted(overrides), plugins=[PLUGIN])


def run(made: Plan | None = None, **more: Any) -> RunResult:
    return run_plan(made or plan(), **({"inline": True} | more))


def folder(made: Plan, stage: str) -> Path:
    return rundir.partial_folder(Path("runs").resolve(), stage, str(made.stage(stage).fingerprint))


def test_a_run_makes_all_stages_and_gives_what_they_made() -> None:
    result = run()

    artifact = result.artifact("second")
    assert isinstance(artifact, Text)
    assert next(artifact.train())["text"] == "ROW 0 OF 3!"


def test_a_run_leaves_its_recipe_its_plan_and_its_report() -> None:
    result = run()

    assert sorted(path.name for path in result.folder.iterdir()) == [
        "data.json", "events.jsonl", "plan.json", "recipe.toml", "report.html", "run.json",
    ]  # fmt: skip
    assert (result.folder / "recipe.toml").read_text() == RECIPE


def test_the_second_run_reuses_all_stages_and_starts_no_process() -> None:
    run()

    result = run(inline=False)

    assert [stage.reused for stage in result.stages] == [True, True]
    assert not rundir.zygote_log(Path("runs")).exists()


def test_the_second_run_does_not_import_torch() -> None:
    run()
    code = (
        "import sys, alignkit\n"
        f"alignkit.run_recipe('light.toml', plugins=[{str(PLUGIN)!r}])\n"
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_reused_stage_shows_the_figures_that_it_had() -> None:
    run()
    heard: list[Event] = []

    run(observers=[heard.append])

    figures = [event.results for event in heard if isinstance(event, StageFinished)]
    assert figures == [(Result("first", "steps", 0.0, 3.0),), ()]


def test_a_changed_setting_runs_the_stage_and_what_follows_it_again() -> None:
    run()

    result = run(plan(first__count__steps=4))

    assert [stage.reused for stage in result.stages] == [False, False]


def test_a_changed_setting_leaves_what_is_before_it() -> None:
    run()

    result = run(plan(second__shout__mark="?"))

    assert [stage.reused for stage in result.stages] == [True, False]


def test_only_wanted_stages_run() -> None:
    result = run_recipe("light.toml", until="first", inline=True, plugins=[PLUGIN])

    assert [stage.name for stage in result.stages] == ["first"]


def test_a_stage_that_runs_again_and_makes_the_same_leaves_the_next_one() -> None:
    run()

    result = run(again=["first"])

    assert [stage.reused for stage in result.stages] == [False, True]


def test_a_stage_that_runs_again_and_makes_something_else_runs_the_next_one() -> None:
    made = plan(first__count__dice=True)
    run(made)

    result = run(made, again=["first"])

    assert [stage.reused for stage in result.stages] == [False, False]


def test_a_damaged_stage_can_run_again() -> None:
    artifact = run().artifact("first")
    (artifact.path / "data.jsonl").unlink()

    result = run(again=["first"])

    assert [stage.reused for stage in result.stages] == [False, True]


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("inline", [True, False])
def test_a_damaged_artifact_is_not_started_from(inline: bool) -> None:
    first = run(plan(result="first")).stage("first")
    flip_a_bit(first.folder / "artifact" / "data.jsonl")

    with pytest.raises(StageError) as raised:
        run(inline=inline)

    damage = "the finished stage is damaged: data.jsonl is not as it was written"
    expected = f"{first.folder}: {damage}; put it back, or run again with --again first"
    assert str(raised.value) == expected
    assert not list(Path("runs/stages").glob("second-*"))


def test_a_damaged_artifact_is_refused_before_any_stage_runs(here: Path) -> None:
    (here / "light.toml").write_text(RECIPE + '[stage.third]\nmethod = "shout"\ninputs.text = "first"\n')
    first = run(plan(result="first")).stage("first")
    flip_a_bit(first.folder / "artifact" / "data.jsonl")
    heard: list[Event] = []

    with pytest.raises(StageError):
        run(plan(result=["second", "third"]), observers=[heard.append])

    assert {event.stage for event in heard} == {"first"}


def test_what_a_stage_starts_from_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(plan(result="first")).stage("first")
    file = made.folder / "artifact" / "data.jsonl"
    os.utime(file, (time.time() - 60, time.time() - 60))
    run()

    assert str(file) in FileHashes(rundir.file_hashes(Path("runs").resolve())).known


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_damaged_journal_of_a_finished_stage_stops_nothing(name: str, inline: bool) -> None:
    first = run(plan(result="first")).stage("first")
    file = first.folder / name
    file.write_bytes(file.read_bytes()[:-5])

    result = run(inline=inline)

    page = (result.folder / "report.html").read_text("utf-8")
    assert [stage.reused for stage in result.stages] == [True, False]
    assert f"1 line of {name} cannot be read and is left out" in page


def test_a_damaged_journal_of_an_unfinished_stage_stops_nothing() -> None:
    made = plan(first__count__fail="bug", first__count__at=3)
    with pytest.raises(StageError):
        run(made)
    for name in ("metrics.jsonl", "events.jsonl"):
        (folder(made, "first") / name).write_bytes(b'{"n": 0, "step"\n\xff\n' * 20)
    heard: list[Event] = []

    run(made, inline=False, observers=[heard.append])

    told = [event.problem for event in heard if isinstance(event, Warned)]
    assert [event.step for event in heard if isinstance(event, Metrics)] == [3]
    assert len(told) == 1
    assert told[0].endswith("of metrics.jsonl cannot be read and are left out")


def test_a_stage_whose_description_is_damaged_can_run_again() -> None:
    first = run().stage("first")
    (first.folder / "stage.json").write_text('{"format": 1, "artif')
    with pytest.raises(StageError, match=r"run again with --again first$"):
        run()

    result = run(again=["first"])

    assert [stage.reused for stage in result.stages] == [False, True]
    assert ">damaged" not in (result.folder / "report.html").read_text()


def test_an_unknown_stage_cannot_run_again() -> None:
    with pytest.raises(RecipeError) as raised:
        run(again=["frist"])

    assert str(raised.value) == "--again frist: there is no stage 'frist' to run again; did you mean 'first'?"


def test_what_would_be_reused_is_known_beforehand() -> None:
    before = reusable(plan(), "runs")
    run()

    assert (before, list(reusable(plan(), "runs"))) == ({}, ["first", "second"])


def test_an_observer_hears_of_a_stage_in_order() -> None:
    heard: list[Event] = []

    run(observers=[heard.append])

    told = [type(event).__name__ for event in heard if event.stage == "first"]
    assert told == ["StageStarted", "Metrics", "Metrics", "Metrics", "Result", "Sample", "StageFinished"]


def test_an_observer_that_fails_is_left_out_and_the_others_are_told_in_one_line() -> None:
    calls, heard = list[Event](), list[Event]()

    def broken(event: Event) -> None:
        calls.append(event)
        raise ValueError("no such run")

    run(observers=[broken, heard.append])

    (warning,) = (event for event in heard if isinstance(event, Warned))
    file = Path("runs/light/latest/observers.log").resolve()
    assert len(calls) == 1
    assert warning.problem == "the observer broken failed (ValueError: no such run) and is left out from now on"
    assert warning.remedy == f"{file} tells where"
    assert file.read_text().startswith("broken:\nTraceback (most recent call last):\n")


def test_an_observer_that_wants_to_leave_does_not_end_the_run() -> None:
    def leaving(event: Event) -> None:
        raise SystemExit(3)

    assert [stage.name for stage in run(observers=[leaving]).stages] == ["first", "second"]


def test_a_stage_tells_what_it_was_made_with() -> None:
    heard: list[Event] = []

    made = plan()
    run(made, observers=[heard.append])

    _, second = (event for event in heard if isinstance(event, StageStarted))
    stage = made.stage("second")
    assert (second.seed, second.fingerprint) == (stage.seed, stage.fingerprint)
    assert second.inputs == {"text": ("first",)}
    assert second.settings == stage.settings.model_dump(mode="json")


@pytest.mark.parametrize("inline", [True, False])
def test_a_stage_that_fails_is_told(inline: bool) -> None:
    heard: list[Event] = []

    with pytest.raises(StageError):
        run(plan(first__count__fail="user"), inline=inline, observers=[heard.append])

    failed = heard[-1]
    assert isinstance(failed, StageFailed)
    assert (failed.stage, failed.problem, failed.status) == ("first", "the loss is NaN", 76)
    assert failed.remedy.startswith("lower the learning rate; see ")
    assert from_json(json.loads(json.dumps(to_json(failed)))) == failed


def test_a_stage_that_is_stopped_is_told() -> None:
    heard, stop = list[Event](), Stop()

    def interrupting(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Metrics):
            stop.signals.append(signal.SIGINT)

    with pytest.raises(StoppedError):
        run(plan(), observers=[interrupting], stop=stop)

    assert heard[-1] == StageFailed("first", "stopped", "the same command goes on from here", 130)


def test_what_an_earlier_attempt_told_is_marked() -> None:
    heard: list[Event] = []
    with pytest.raises(StageError):
        run(plan(first__count__fail="user"), inline=False)

    run(plan(first__count__fail="user"), inline=False, observers=[heard.append])

    points = [(event.step, event.replayed) for event in heard if isinstance(event, Metrics)]
    assert points == [(1, True), (2, False), (3, False)]
    (result,) = (event for event in heard if isinstance(event, Result))
    assert "replayed" not in to_json(result)
    assert json.loads(json.dumps(to_json(heard[1])))["replayed"] is True


def test_a_plugin_that_fails_while_it_observes_does_not_disturb_another(here: Path) -> None:
    hook = "from alignkit import hookimpl\nfrom pathlib import Path\n@hookimpl\ndef alignkit_event(event):\n"
    (here / "bad.py").write_text(hook + "    raise ValueError\n")
    (here / "good.py").write_text(hook + "    with open('heard', 'a') as f: f.write(event.stage + ' ')\n")
    made = make_plan("light.toml", plugins=[PLUGIN, here / "bad.py", here / "good.py"])

    run(made)

    assert set((here / "heard").read_text().split()) == {"first", "second"}


def test_a_gate_stops_the_run_before_the_next_stage() -> None:
    with pytest.raises(StageError) as raised:
        run(plan(first__gates__steps__min=5))

    lies = rundir.finished_folder(folder(plan(), "first")).relative_to(Path.cwd())
    expected = (
        f"stage 'first': gates.steps: 3 is below its minimum 5; improve the stage or move the gate; it lies in {lies}"
    )
    assert str(raised.value) == expected


def test_a_gate_also_holds_for_a_reused_stage() -> None:
    run()

    with pytest.raises(StageError, match="3 is above its maximum 2"):
        run(plan(first__gates__steps__max=2))


def test_a_gate_of_a_figure_that_nobody_gives_is_an_error() -> None:
    with pytest.raises(StageError) as raised:
        run(plan(first__gates__perplexity__max=2))

    expected = "stage 'first': gates.perplexity: the stage gives no such result; its results are steps"
    assert str(raised.value) == expected


def test_a_stage_that_fails_names_itself_and_its_folder() -> None:
    made = plan(first__count__fail="user")

    with pytest.raises(StageError) as raised:
        run(made)

    lies = folder(made, "first").relative_to(Path.cwd())
    expected = f"stage 'first', step 2: the loss is NaN; lower the learning rate; see {lies}"
    assert (str(raised.value), raised.value.status) == (expected, 76)


def test_a_crash_keeps_what_is_finished_and_the_next_run_goes_on(here: Path) -> None:
    (here / "light.toml").write_text(RECIPE + '[stage.third]\nmethod = "count"\ncount.fail = "bug"\n')
    made = plan(result=["second", "third"])
    with pytest.raises(StageError):
        run(made)
    heard: list[Event] = []

    result = run(made, observers=[heard.append])

    assert [stage.reused for stage in result.stages] == [True, True, False]
    assert [event.resumed for event in heard if isinstance(event, StageStarted)] == [True]


def test_a_stage_that_somebody_works_on_is_not_disturbed() -> None:
    made = plan()

    with hold(folder(made, "first")), pytest.raises(LockedError) as raised:
        run(made)

    assert raised.value.status == 75
    assert str(raised.value).endswith("is working on it; wait for it, or stop it")


@pytest.mark.slow
def test_a_stage_of_a_machine_that_vanished_is_taken_over_with_a_warning() -> None:
    made, heard = plan(), list[Event]()
    lease = rundir.lock_file(folder(made, "first")).with_suffix(".1")
    lease.mkdir(parents=True)
    (lease / "holder.json").write_text('{"pid": 12, "host": "far", "system": "another"}')
    os.utime(lease / "holder.json", (0, 0))

    run(made, observers=[heard.append])

    assert Doing("first", "listening for process 12 on far, which has this stage") in heard
    assert [event.problem for event in heard if isinstance(event, Warned) and event.stage == "first"] == [
        "process 12 on far worked on it and is not heard of any more, so it is taken over"
    ]


def test_a_stop_before_a_stage_begins_is_heeded() -> None:
    with pytest.raises(StoppedError) as raised:
        run(stop=Stop([signal.SIGTERM]))

    assert str(raised.value) == "stage 'first': stopped; the same command goes on from here"
    assert raised.value.status == 143


def test_all_rows_are_checked_before_anything_runs(here: Path) -> None:
    (here / "rows.jsonl").write_text('{"text": "fine"}\n' * 30 + '{"text": 5}\n')
    (here / "light.toml").write_text('[sources.mine]\ntext = "rows.jsonl"\n[stage.shout]\n')

    with pytest.raises(DataError) as raised:
        run()

    expected = f"{here}/rows.jsonl:31: 'text' must be text, and is 5; correct the row or leave it out"
    assert str(raised.value) == expected
    assert not (here / "runs" / "stages").exists()


HUB = """
[sources.base]
policy = "hf:someone/model"
[sources.theirs]
text = "hf:someone/rows"
split = "train[:2]"
[stage.shout]
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_into_cache(cache: Path, name: str, files: dict[str, str]) -> None:
    """Lay a repository into a hub cache, as downloading it would."""
    snapshot = cache / name / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cache / name / "refs").mkdir()
    (cache / name / "refs" / "main").write_text(COMMIT)
    for file, text in files.items():
        (snapshot / file).write_text(text)


def offline(here: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"HF_HOME": str(here / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "alignkit", "recipe", "light.toml", "-p", str(PLUGIN), "--inline", "--offline"]
    return subprocess.run([*command, *arguments], env=environment, check=False, capture_output=True, text=True)


def test_a_run_starts_from_the_hubs_cache_and_pins_its_commit(here: Path) -> None:
    (here / "light.toml").write_text(HUB)
    rows = "".join(f'{{"text": "row {n}", "label": {n}}}\n' for n in range(5))
    put_into_cache(here / "hf" / "hub", "datasets--someone--rows", {"train.jsonl": rows})

    ended = offline(here)

    assert ended.returncode == 0, ended.stderr
    assert json.loads((here / "light.lock").read_text())["hub"]["hf:someone/rows"] == COMMIT


def test_a_hub_source_that_is_nowhere_is_refused(here: Path) -> None:
    (here / "light.toml").write_text(HUB)

    ended = offline(here)

    assert ended.returncode == 65
    assert "hf:someone/rows: source 'theirs' cannot be fetched (LocalEntryNotFoundError: " in ended.stderr


def test_a_run_starts_from_files(here: Path) -> None:
    (here / "rows.jsonl").write_text('{"text": "fine", "held_out": false}\n')
    (here / "light.toml").write_text('[sources.mine]\ntext = "rows.jsonl"\n[stage.shout]\n')

    artifact = run().artifact("shout")

    assert isinstance(artifact, Text)
    assert [row["text"] for row in (*artifact.train(), *artifact.held_out())] == ["FINE!"]


def test_built_in_rows_are_written_once_for_all_runs(here: Path) -> None:
    (here / "light.toml").write_text('[sources.ours]\ntext = "builtin:reviews"\n[stage.shout]\n')

    run()

    assert sorted(path.name for path in (here / "runs" / "sources").glob("ours-*/*")) == [
        "text-held_out.jsonl",
        "text-train.jsonl",
    ]


def test_a_run_without_a_stage_of_that_name_says_so() -> None:
    with pytest.raises(StageError, match=r"^this run has no stage 'third'; it has first, second$"):
        run().stage("third")


def test_a_stage_in_a_process_of_its_own_is_followed() -> None:
    heard: list[Event] = []

    run_plan(make_plan("light.toml", until="first", plugins=[PLUGIN]), fork=False, observers=[heard.append])

    told = [type(event).__name__ for event in heard if event.stage == "first"]
    assert told == ["StageStarted", "Metrics", "Metrics", "Metrics", "Result", "Sample", "StageFinished"]


def test_a_stage_forked_from_the_zygote_gives_the_same_as_one_in_place() -> None:
    apart = run(inline=False, fork=True).stage("second")
    in_place = run(runs="other").stage("second")

    assert apart.artifact.fingerprint == in_place.artifact.fingerprint
    assert (apart.folder / "log.txt").read_text() == "shouting to standard output\n"
    assert (apart.folder / "artifact" / "data.jsonl").read_bytes() == (
        in_place.folder / "artifact" / "data.jsonl"
    ).read_bytes()


@pytest.mark.parametrize(
    ("fail", "status", "problem"),
    [
        (
            "killed",
            71,
            "it was killed by the system, perhaps because memory ran out; try --set first.count.batch=4",
        ),
        ("segfault", 1, "its process ended with signal SIGSEGV"),
        ("exit", 1, "its process ended with status 3"),
        ("bug", 1, "ValueError: the sky is falling"),
    ],
)
def test_a_process_that_ends_badly_is_told_as_a_failure_of_its_stage(fail: str, status: int, problem: str) -> None:
    made = plan(first__count__fail=fail)

    with pytest.raises(StageError) as raised:
        run(made, inline=False, fork=False)

    log = folder(made, "first").relative_to(Path.cwd()) / "log.txt"
    assert (str(raised.value), raised.value.status) == (f"stage 'first': {problem}; see {log}", status)


Started = Callable[..., "subprocess.Popen[bytes]"]


def in_another_process(overrides: str) -> "subprocess.Popen[bytes]":
    """Run the recipe as the command line would, and exit with the status of what went wrong."""
    code = (
        "import sys\n"
        "from alignkit.errors import AlignkitError\n"
        "from alignkit.plan.planner import make_plan\n"
        "from alignkit.run.runner import run_plan\n"
        f"plan = make_plan('light.toml', set={overrides}, plugins=[{str(PLUGIN)!r}])\n"
        "try:\n"
        "    run_plan(plan, fork=False)\n"
        "except AlignkitError as error:\n"
        "    sys.exit(error.status)\n"
    )
    # A shell that puts the tests into its background lets them, and so the run, ignore SIGQUIT.
    return subprocess.Popen(
        [sys.executable, "-c", code], preexec_fn=lambda: signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    )


@pytest.fixture
def start_run() -> Iterator[Started]:
    """Start a run in another process, whose one stage takes its time; wait until it has made its first steps."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(made: Plan) -> "subprocess.Popen[bytes]":
        processes.append(in_another_process("{'first.count.seconds': 0.03, 'first.count.steps': 40}"))
        wait_for(lambda: len(list((folder(made, "first") / "checkpoints").glob("step-*[0-9]"))) > 1)
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def wait_for(fact: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def slow() -> Plan:
    return plan(first__count__seconds=0.03, first__count__steps=40)


def worker_of(made: Plan) -> psutil.Process:
    return psutil.Process(read_json(folder(made, "first") / "started.json")["pid"])


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGUSR1, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 143, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_interrupted_ends_with_the_signals_status_and_goes_on_afterwards(
    start_run: Started, number: int, status: int
) -> None:
    made = slow()
    process = start_run(made)

    process.send_signal(number)

    assert process.wait(10) == status
    result = run(made)
    told = read_journal("first", result.stage("first").folder)
    assert [event.step for event in told if isinstance(event, Metrics)] == list(range(1, 41))


def command(*words: str, **more: Any) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "alignkit", "recipe", "light.toml", "-p", str(PLUGIN), *words]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.parametrize("how", [["--inline"], []])
def test_a_stage_that_heeds_nothing_is_left_where_it_is(here: Path, how: list[str]) -> None:
    (here / "light.toml").write_text("[stage.nap]\nnap.told = true\n")
    process = command(*how)
    wait_for((here / "napping").is_file, 60)

    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)

    assert process.returncode == 130, told
    assert told.splitlines()[-2] == "error: stage 'nap': stopped; the same command goes on from here"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_that_a_shell_had_ignored_is_heeded_while_the_plan_is_made(here: Path, number: int) -> None:
    (here / "early.py").write_text(f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(30)\n")

    process = command("-p", "early.py", preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))
    _, told = process.communicate(timeout=20)

    expected = {signal.SIGINT: 130, signal.SIGUSR1: 130, signal.SIGTERM: 143, signal.SIGQUIT: -signal.SIGQUIT}
    assert process.returncode == expected[signal.Signals(number)]
    assert "Traceback" not in told
    assert not (here / "runs" / "stages").exists()


def test_a_run_whose_terminal_quits_leaves_no_process_behind(start_run: Started) -> None:
    made = slow()
    process = start_run(made)
    worker = worker_of(made)

    process.send_signal(signal.SIGQUIT)

    worker.wait(3)
    assert process.wait(3) == -signal.SIGQUIT


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("moment", [n / 2 for n in range(1, 21)])
def test_a_signal_is_heeded_at_any_moment(here: Path, number: int, moment: float) -> None:
    (here / "light.toml").write_text("[stage.nap]\n")
    process = command()
    time.sleep(moment)

    process.send_signal(number)
    _, told = process.communicate(timeout=10)

    assert process.returncode == (143 if number == signal.SIGTERM else 130), told
    assert [child for child in psutil.process_iter() if child.pid != os.getpid() and _works_in(child, here)] == []


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.mark.parametrize("how", [["--inline"], []])
def test_a_second_interrupt_ends_the_run_at_once(here: Path, how: list[str]) -> None:
    (here / "light.toml").write_text("[stage.nap]\nnap.stepped = true\nnap.told = true\n")
    process = command(*how)
    wait_for((here / "napping").is_file, 60)

    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)

    process.communicate(timeout=3)
    assert process.returncode == 130


def test_killing_the_runner_ends_its_worker_within_two_seconds_and_the_next_run_goes_on(start_run: Started) -> None:
    made = slow()
    process = start_run(made)
    worker = worker_of(made)

    os.kill(process.pid, signal.SIGKILL)

    worker.wait(2)
    heard: list[Event] = []
    run(made, observers=[heard.append])
    assert [event.resumed for event in heard if isinstance(event, StageStarted)] == [True, False]


def test_killing_the_zygote_ends_its_worker_and_is_told(start_run: Started) -> None:
    made = slow()
    process = start_run(made)
    worker = worker_of(made)
    parent = worker.parent()
    assert parent

    parent.kill()

    worker.wait(2)
    assert process.wait(10) == 71


def test_a_second_run_of_the_same_stage_is_refused_while_the_first_goes_on(start_run: Started) -> None:
    made = slow()
    process = start_run(made)

    with pytest.raises(LockedError) as raised:
        run(made)

    pid = worker_of(made).pid
    assert f"process {pid} on " in str(raised.value)
    assert process.poll() is None


def test_several_processes_share_a_stage(here: Path) -> None:
    result = run(make_plan("light.toml", until="first", plugins=[PLUGIN]), inline=False, machine=Machine(processes=2))

    facts = find_finished(here / "runs", "first", str(plan().stage("first").fingerprint))
    assert facts
    assert facts.facts["processes"] == 2
    assert len(result.stages) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no machines.toml; write it: [gpus] processes = 2"),
        ("[gpu]\nprocesses = 2", "there is no machine 'gpus'; did you mean 'gpu'?"),
        ("[gpus", "not TOML (Expected ']' at the end of a table declaration (at end of document)); correct the line"),
        (
            "[gpus]\nproceses = 2",
            f"gpus.proceses: Extra inputs are not permitted; {SHAPE}",
        ),
        (
            "[gpus]\nsharded = 2",
            f"gpus.sharded.bool: Input should be a valid boolean; {SHAPE}",
        ),
        ("[gpus]\nnodes = 2", 'gpus: 2 nodes cannot be reached with start = "here"; leave nodes out'),
        (
            '[gpus]\nnodes = 2\nstart = "slurm"\nslurm.time = "1:00:00"\nrewards.vllm = "vllm"',
            "gpus: the server of rewards.vllm is on one node, and others do not reach it; name rewards.urls",
        ),
    ],
)
def test_a_machine_that_cannot_be_read_is_refused(here: Path, text: str | None, message: str) -> None:
    if text:
        (here / "machines.toml").write_text(text)

    with pytest.raises(RecipeError) as raised:
        read_machine("gpus", here)

    where = here / "machines.toml" if text else here
    assert str(raised.value) == f"{where}: {message}"


@pytest.mark.parametrize(
    ("machine", "small", "large"),
    [
        (Machine(processes=2), False, True),
        (Machine(processes=2, sharded=True), True, True),
        (Machine(processes=2, sharded=False), False, False),
        (Machine(sharded=True), False, False),
    ],
    ids=["auto", "always", "never", "alone"],
)
def test_weights_are_cut_up_where_a_stage_does_not_fit_or_the_machine_says_so(
    machine: Machine, small: bool, large: bool
) -> None:
    assert [machine.decided(large=large).sharded for large in (False, True)] == [small, large]


def test_a_machine_says_how_many_processes(here: Path) -> None:
    (here / "machines.toml").write_text("[gpus]\nprocesses = 2\n")

    assert read_machine("gpus", here) == Machine(processes=2)
