"""One stage from its order: what it leaves when it is done, stopped, or failed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from light_recipes import PLUGIN

from alignkit import Demonstrations, Event, Metrics, Policy, Result, Rows, Sample, StageStarted, Text, Warned
from alignkit.contract.events import from_json, to_json
from alignkit.contract.method import Input
from alignkit.data.records import Part
from alignkit.errors import DataError, LockedError, NotFiniteError, StageError
from alignkit.noise import change_interval, mean_interval
from alignkit.plugins import load_plugins
from alignkit.run.failures import explain, lighter
from alignkit.run.machine import Machine
from alignkit.run.order import Order, given, typed, write_order
from alignkit.run.stopping import Left, Stop, noting_signals
from alignkit.run.worker import main, work
from alignkit.run.working_stage import WorkingStage
from alignkit.store import rundir
from alignkit.store.checkpoints import steps
from alignkit.store.durable import read_json
from alignkit.store.journal import read_journal
from alignkit.store.locks import hold
from alignkit.store.results import Finished, find_finished
from alignkit.training.models import load_policy

PRINT = "f8d922c0" + "0" * 56


def order(**more: Any) -> Order:
    facts = {
        "attempt": "a1",
        "stage": "first",
        "method": "count",
        "settings": {},
        "inputs": {},
        "seed": 3,
        "fingerprint": PRINT,
        "plugin_files": (PLUGIN,),
    }
    return Order.model_validate(facts | more)


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    folder = rundir.partial_folder(tmp_path, "first", PRINT)
    folder.mkdir(parents=True)
    return folder


def run(partial: Path, stop: Stop | None = None, **more: Any) -> int:
    given = order(**more)
    write_order(partial, given)
    return work(partial, given, stop or Stop(), quiet=True)


def finished(partial: Path) -> Finished:
    found = find_finished(partial.parent.parent, "first", PRINT)
    assert found
    return found


def failure(partial: Path) -> dict[str, Any]:
    return read_json(partial / rundir.FAILURE)


def test_a_finished_stage_leaves_its_artifact_its_journal_its_log_and_no_scraps(partial: Path) -> None:
    status = run(partial)

    names = sorted(path.name for path in finished(partial).folder.iterdir())
    assert (status, names) == (0, ["artifact", "events.jsonl", "log.txt", "metrics.jsonl", "stage.json"])


def test_what_fails_once_the_result_is_saved_costs_nothing_but_a_warning(partial: Path) -> None:
    status = run(partial, settings={"fail": "afterwards"})

    folder = finished(partial).folder
    (warned,) = [event for event in read_journal("first", folder) if isinstance(event, Warned)]
    assert (status, (folder / "artifact" / "data.jsonl").read_text()) == (0, '{"text": "a row"}\n')
    assert (warned.problem, warned.remedy) == (
        "the result is saved, but what was to be measured and shown of it failed (ValueError: what is shown cannot be)",
        "log.txt in the stage's folder tells why",
    )


def test_it_tells_steps_figures_and_samples_in_their_order(partial: Path) -> None:
    run(partial)

    told = [type(event) for event in read_journal("first", finished(partial).folder)]
    assert told == [Metrics, Metrics, Metrics, Result, Sample]


SEEN = """
import os
from alignkit import Settings, Stage, Text, hookimpl, method

class SeenSettings(Settings):
    "None."

@method("seen")
def seen(settings: SeenSettings, stage: Stage) -> Text:
    "Say which GPUs there are."
    return stage.save_rows(Text, [{"text": os.environ["CUDA_VISIBLE_DEVICES"]}])

@hookimpl
def alignkit_methods():
    return [seen]
"""


def test_it_has_the_gpus_of_its_order(partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    plugin = partial.parent / "seen.py"
    plugin.write_text(SEEN)
    write_order(partial, order(method="seen", gpus=("2", "3"), plugin_files=(plugin,)))

    status = main([str(partial)])

    artifact = finished(partial).artifact
    assert isinstance(artifact, Text)
    assert (status, [row["text"] for row in artifact.train()]) == (0, ["2,3"])


def test_it_records_what_made_it(partial: Path) -> None:
    run(partial, settings={"steps": 2})

    facts = finished(partial).facts
    assert {key: facts[key] for key in ("stage", "method", "settings", "seed", "processes", "resumed_from")} == {
        "stage": "first",
        "method": "count",
        "settings": {"steps": 2},
        "seed": 3,
        "processes": 1,
        "resumed_from": None,
    }


def test_it_records_memory_and_versions(partial: Path) -> None:
    run(partial)

    facts = finished(partial).facts
    assert facts["peak_memory"]["memory"] > 10 * 2**20
    assert {"python", "alignkit"} <= facts["versions"].keys()


def test_pythons_random_numbers_come_from_the_stages_seed(partial: Path) -> None:
    run(partial)

    drawn = random.random()
    assert drawn == random.Random(3).random()


def test_a_second_order_for_a_finished_stage_does_nothing(partial: Path) -> None:
    run(partial, settings={"dice": True})
    before = finished(partial).content
    partial.mkdir()

    status = run(partial, settings={"dice": True})

    assert (status, finished(partial).content) == (0, before)


def test_an_attempt_that_died_just_before_the_renaming_is_not_repeated(partial: Path) -> None:
    run(partial, settings={"dice": True})
    before = finished(partial).content
    finished(partial).folder.rename(partial)

    status = run(partial, settings={"dice": True})

    assert (status, finished(partial).content) == (0, before)


def test_a_stage_is_made_again_where_the_order_says_so(partial: Path) -> None:
    run(partial, settings={"dice": True})
    before = finished(partial).content
    partial.mkdir()

    status = run(partial, settings={"dice": True}, again=True)

    assert status == 0
    assert finished(partial).content != before


@pytest.mark.parametrize(
    ("fail", "status", "problems"),
    [
        ("bug", 1, [["ValueError: the sky is falling", "", ""]]),
        ("user", 76, [["the loss is NaN", "step 2", "lower the learning rate"]]),
        ("memory", 71, [["there is not enough memory", "", "try --set first.count.batch=4"]]),
        (
            "nothing",
            78,
            [
                [
                    "method 'count' returned NoneType instead of Text",
                    "alignkit_file_methods",
                    "return what stage.save_policy, save_reward or save_rows gives",
                ]
            ],
        ),
        (
            "foreign",
            78,
            [
                [
                    "method 'count' returned an artifact that this stage did not save",
                    "alignkit_file_methods",
                    "return what stage.save_policy, save_reward or save_rows gives",
                ]
            ],
        ),
    ],
)
def test_a_failure_is_explained(partial: Path, fail: str, status: int, problems: list[list[str]]) -> None:
    ended = run(partial, settings={"fail": fail, "batch": 8})

    assert ended == status
    assert failure(partial) == {"attempt": "a1", "status": status, "problems": problems}


def test_a_bugs_traceback_is_in_the_log(partial: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with capfd.disabled():
        run(partial, settings={"fail": "bug"})

    log = (partial / "log.txt").read_text()
    assert log.startswith("Traceback (most recent call last):\n")
    assert log.endswith("ValueError: the sky is falling\nand more\n")


def test_a_disk_that_fails_has_its_status(partial: Path) -> None:
    status = run(partial, settings={"fail": "broken disk"})

    problem = "/data/rows.jsonl cannot be read or written (Input/output error)"
    assert (status, failure(partial)["problems"]) == (
        74,
        [[problem, "", "look at the disk; then the same command goes on"]],
    )


def test_weights_that_are_no_numbers_are_not_saved(partial: Path, tiny_policy: Policy) -> None:
    model, tokenizer = load_policy(tiny_policy)
    name, weight = list(model.named_parameters())[-1]
    with torch.no_grad():
        weight[0] = float("nan")

    with pytest.raises(NotFiniteError) as raised:
        stage(partial).save_policy(model, tokenizer)

    assert raised.value.status == 76
    assert str(raised.value) == (
        f"after the last step {name} holds what is not a finite number; "
        "lower the learning rate, or look at the data of the last steps"
    )
    assert not (partial / "artifact").exists()


def test_a_full_disk_is_recognised(partial: Path) -> None:
    status = run(partial, settings={"fail": "disk"})

    [[problem, where, remedy]] = failure(partial)["problems"]
    assert (status, where) == (74, "")
    assert problem.startswith("the disk is full (")
    assert remedy == "make room, and run the same command again: it goes on from the last checkpoint"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        ValueError('SafetensorError: I/O error: No space left on device (os error 28)"'),
    ],
)
def test_a_full_disk_is_recognised_in_what_libraries_make_of_it(partial: Path, error: Exception) -> None:
    assert explain(error, order(), partial).status == 74


def test_out_of_memory_is_recognised_beneath_another_error(partial: Path) -> None:
    error = ValueError("training failed")
    error.__cause__ = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    assert explain(error, order(), partial).status == 71


def test_three_lighter_settings_are_advised() -> None:
    settings = {"batch": 64, "max_length": 1024, "lora": None, "generation": {"max_new_tokens": 48}, "epochs": 1}

    advice = lighter("align", "ppo", settings)

    assert advice == "try --set align.ppo.batch=32 --set align.lora.rank=16 --set align.ppo.max_length=512"


def test_an_unknown_method_is_a_plugin_error(partial: Path) -> None:
    status = run(partial, method="cuont")

    expected = [["no plugin offers a method 'cuont'", f"in {sys.executable}", "did you mean 'count'?"]]
    assert (status, failure(partial)["problems"]) == (78, expected)


def test_too_few_processes_are_noticed(partial: Path) -> None:
    status = run(partial, machine=Machine(processes=2))

    expected = [["1 processes were started instead of 2", "", "look at the launcher"]]
    assert (status, failure(partial)["problems"]) == (1, expected)


def test_a_second_attempt_goes_on_from_the_last_checkpoint(partial: Path) -> None:
    run(partial, settings={"fail": "bug", "at": 3, "steps": 4})
    status = run(partial, settings={"fail": "bug", "at": 3, "steps": 4}, attempt="a2")

    steps = [event.step for event in read_journal("first", finished(partial).folder) if isinstance(event, Metrics)]
    assert (status, steps, finished(partial).facts["resumed_from"]) == (0, [1, 2, 3, 4], 2)


def test_a_second_attempt_makes_the_same_as_one_that_was_never_broken(tmp_path: Path, partial: Path) -> None:
    other = rundir.partial_folder(tmp_path / "other", "first", PRINT)
    run(partial, settings={"fail": "bug"})
    run(partial, settings={"fail": "bug"}, attempt="a2")
    run(other, settings={})

    assert finished(partial).content == finished(other).content


def test_a_journal_that_was_emptied_is_told(partial: Path) -> None:
    run(partial, settings={"fail": "bug"})
    size = len((partial / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0])  # the second is not committed
    (partial / "metrics.jsonl").write_text("")

    run(partial, attempt="a2")

    (warned,) = [event for event in read_journal("first", finished(partial).folder) if isinstance(event, Warned)]
    wrong = f"metrics.jsonl was cut off (0 of {size} bytes are left)"
    assert warned.problem == f"{wrong}, so what was told before is missing in the report"
    assert warned.remedy == "the stage's result is not affected; check the disk"


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(partial: Path) -> None:
    run(partial, settings={"fail": "bug", "at": 3})
    (partial / "checkpoints" / "step-2" / "step.txt").write_text("7")
    run(partial, settings={"fail": "bug", "at": 3}, attempt="a2")

    warned = [event for event in read_journal("first", finished(partial).folder) if isinstance(event, Warned)]
    assert warned == [
        Warned(
            "first",
            "the checkpoint step-2 is damaged (step.txt is not as it was written)",
            "an older one is used; check the disk if this happens again",
        )
    ]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_that_is_asked_to_stop_leaves_with_the_signals_status(partial: Path, number: int, status: int) -> None:
    assert run(partial, Stop([number])) == status


def test_a_handler_only_notes_the_signal() -> None:
    with noting_signals(Stop()) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    assert (stop.signals, stop.status) == ([signal.SIGTERM, signal.SIGINT], 143)


def kill_and_wait(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(30)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGUSR1, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)],
)
def test_a_signal_ends_at_once_what_loses_nothing_by_that(number: int, status: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under `nohup` one is ignored, and stays so
    try:
        with noting_signals(Stop()) as stop:
            with pytest.raises(Left), stop.at_once():
                kill_and_wait(number)
            with pytest.raises(Left), stop.at_once():
                pytest.fail("it goes on")
    finally:
        signal.signal(number, before)

    assert stop.status == status


def test_a_signal_that_is_not_heeded_ends_what_waits_after_a_grace_time() -> None:
    began = time.monotonic()

    with noting_signals(Stop()) as stop, pytest.raises(Left), stop.within(0.2):
        kill_and_wait(signal.SIGTERM)

    assert 0.2 < time.monotonic() - began < 5
    assert stop.signals == [signal.SIGTERM]


def test_a_signal_is_only_noted_while_a_checkpoint_is_written(partial: Path) -> None:
    with noting_signals(Stop()) as stop:
        working = WorkingStage(order(), partial, stop, 0, None, load_plugins)
        with stop.at_once():
            working.commit(1, lambda folder: os.kill(os.getpid(), signal.SIGINT))

    assert (partial / "checkpoints" / "step-1" / "manifest.json").is_file()
    assert working.stopping


def test_a_step_has_twice_the_time_of_the_last_one_to_end() -> None:
    stop = Stop(grace=0.0)
    stop.step_taken()
    first = stop.grace
    stop._stepped -= 100

    stop.step_taken()

    assert first == 30
    assert stop.grace == pytest.approx(200, abs=1)


def test_who_insists_is_heeded_at_once_and_a_closed_terminal_does_not_insist() -> None:
    with noting_signals(Stop()) as stop, stop.within(30):
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        with pytest.raises(Left):
            os.kill(os.getpid(), signal.SIGINT)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with noting_signals(Stop()) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)

    assert not stop.asked


def test_a_stage_that_looks_at_no_signal_is_left_at_once(partial: Path) -> None:
    with noting_signals(Stop()) as stop:
        given = order(method="nap", settings={"alarm": int(signal.SIGTERM)})
        write_order(partial, given)
        status = work(partial, given, stop, quiet=True)

    assert status == 143
    assert not (partial / rundir.FAILURE).exists()


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)

    with noting_signals(Stop()):
        pass

    assert signal.getsignal(signal.SIGINT) is before


def test_a_stage_that_somebody_works_on_is_left_alone(partial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_order(partial, order())

    with hold(partial):
        status = main([str(partial)])

    assert status == 75
    assert capsys.readouterr().err.endswith("is working on it; wait for it, or stop it\n")


def test_a_stage_that_another_machine_has_taken_over_keeps_nothing_more(partial: Path) -> None:
    write_order(partial, order())
    stage = WorkingStage(order(), partial, Stop(), 0, None, load_plugins)

    with hold(partial) as mine:
        stage.lease = mine.lease
        stage.commit(1, lambda folder: None)
        mine.lease.folder.with_suffix(".2").mkdir()
        with pytest.raises(LockedError):
            stage.commit(2, lambda folder: None)
        with pytest.raises(LockedError):
            stage.save_rows(Text, [{"text": "one"}])

    assert list(steps(partial / rundir.CHECKPOINTS)) == [1]
    assert not stage.artifact.exists()


def test_a_listener_in_the_same_process_hears_all_of_it(partial: Path) -> None:
    heard: list[Event] = []

    work(partial, order(settings={"steps": 1}), Stop(), quiet=False, heard=heard.append)

    assert [type(event) for event in heard] == [StageStarted, Metrics, Result, Sample]


def test_a_worker_can_be_started_by_hand(partial: Path) -> None:
    write_order(partial, order())

    ended = subprocess.run([sys.executable, "-m", "alignkit.run.worker", str(partial)], check=False)

    assert ended.returncode == 0
    assert finished(partial).method == "count"


def stage(partial: Path) -> WorkingStage:
    return WorkingStage(order(), partial, Stop(), 0, None, load_plugins)


def test_rows_without_a_column_of_their_kind_are_refused(partial: Path) -> None:
    with pytest.raises(DataError) as raised:
        stage(partial).save_rows(Demonstrations, [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])

    expected = (
        "row 2 of what it made: demonstrations need the columns prompt + completion or messages or completion; "
        'the row has prompt; say which column it is: sources.first.columns.completion = "..."'
    )
    assert str(raised.value) == expected


def test_figures_on_few_rows_are_told_to_be_so_once(partial: Path) -> None:
    heard: list[Event] = []
    told = WorkingStage(order(), partial, Stop(), 0, heard.append, load_plugins)

    told.result("length", 3, 4)
    told.result("accuracy", 0.5, 1, floor=0.9, rows=4)
    told.result("margin", 0, 1, rows=4)

    assert [event for event in heard if isinstance(event, Result)][1] == Result(
        "first", "accuracy", 0.5, 1.0, 0.9, 4, better="higher"
    )
    assert [event for event in heard if isinstance(event, Warned)] == [
        Warned(
            "first",
            "accuracy was measured on 4 rows, which are too few to tell a difference from chance",
            "keep at least 30 aside: raise the source's held_out, or give more rows",
        )
    ]


def test_what_was_measured_row_by_row_has_intervals(partial: Path) -> None:
    heard: list[Event] = []
    told = WorkingStage(order(), partial, Stop(), 0, heard.append, load_plugins)
    before, after = [0.0, 1.0] * 20, [1.0] * 40

    told.measure("accuracy", before, after, 0.5)
    told.rows({"margin": [float(row) for row in range(5000)]})

    result, rows = (event for event in heard if isinstance(event, Result | Rows))
    assert result == Result(
        "first", "accuracy", 0.5, 1.0, 0.5, 40, mean_interval(after), change_interval(before, after), "higher"
    )
    assert from_json(json.loads(json.dumps(to_json(result)))) == result
    assert isinstance(rows, Rows)
    assert len(rows.columns["margin"]) == 1000
    assert rows.columns["margin"][:3] == [0.0, 5.0, 10.0]


def test_columns_of_rows_are_equally_long(partial: Path) -> None:
    with pytest.raises(StageError, match=r"^stage 'first': columns of rows differ in length \(margin, longer\)$"):
        stage(partial).rows({"margin": [1.0], "longer": []})


def test_no_rows_are_a_failure(partial: Path) -> None:
    with pytest.raises(StageError, match=r"^it made no row at all; look at its warnings and its settings$"):
        stage(partial).save_rows(Text, [])


def test_further_columns_of_rows_are_kept(partial: Path) -> None:
    made = stage(partial).save_rows(Text, [{"text": "one", "p_chosen": 0.5, "held_out": False}])

    assert list(made.train()) == [{"p_chosen": 0.5, "text": "one"}]


def test_several_sources_of_records_become_one(tmp_path: Path) -> None:
    def source(name: str) -> Text:
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps({"text": name, "held_out": False}) + "\n")
        return Text(name=name, fingerprint=name, path=file, parts=(Part(name=name, paths=(file,)),))

    role = Input("corpus", (Text,))
    text = typed(role, given(role, [source("one"), source("two")]))

    assert isinstance(text, Text)
    assert (text.name, [row["text"] for row in text.train()]) == ("one+two", ["one", "two"])


def test_a_role_that_takes_several_gets_a_tuple(tmp_path: Path) -> None:
    role = Input("policies", (Text,), several=True)
    one = Text(name="one", fingerprint="1", path=tmp_path, parts=())

    assert typed(role, given(role, [one, one])) == (one, one)


def test_an_input_that_was_left_out_is_none() -> None:
    assert typed(Input("against", (Text,), optional=True), ()) is None


def test_half_a_character_in_a_failure_is_written_as_its_escape(partial: Path) -> None:
    failure = explain(ValueError("no file caf\udce9.txt"), order(), partial)

    assert failure.problems == (("ValueError: no file caf\\udce9.txt", "", ""),)
    assert failure.model_dump_json()


def test_a_non_finite_loss_keeps_its_own_status(partial: Path) -> None:
    assert explain(NotFiniteError("NaN"), order(), partial).status == 76
