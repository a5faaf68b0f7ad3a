"""Files under `runs/`: whole or not there, verified, moved without harm."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit import Policy, StageError, Text
from alignkit.contract.events import Metrics, Result, Sample, Warned
from alignkit.data.records import Part
from alignkit.errors import DiskError, LockedError
from alignkit.store import checkpoints, rundir
from alignkit.store.durable import damage, hash_file, sync_and_list, write_json
from alignkit.store.journal import EVENTS, METRICS, Follower, Journal, read_journal
from alignkit.store.locks import busy, check_free, hold
from alignkit.store.notes import note_path, read_note, write_note
from alignkit.store.results import find_finished, finish, finish_complete, finished_in, read_finished
from alignkit.store.verification import verify

PRINT = "f8d922c0" + "0" * 56


def made(runs: Path, name: str = "finetune", text: str = "one", **facts: object) -> Path:
    """Finish a stage that made one row of text."""
    partial = rundir.partial_folder(runs, name, PRINT)
    (partial / "artifact").mkdir(parents=True)
    file = partial / "artifact" / "data.jsonl"
    file.write_text(json.dumps({"text": text}) + "\n")
    part = Part(name=name, paths=(file,))
    artifact = Text(name=name, fingerprint=PRINT, path=partial / "artifact", parts=(part,))
    known = {"fingerprint": PRINT, "method": "sft", "seconds": 1.5, "results": [], "made_from": {}}
    return finish(partial, artifact, known | facts)


def test_a_finished_stage_has_its_folders_name_and_nothing_else_beside_it(tmp_path: Path) -> None:
    folder = made(tmp_path)

    assert [path.name for path in (tmp_path / "stages").iterdir()] == [folder.name] == ["finetune-f8d922c0"]


def test_a_finished_stage_is_found_with_its_artifact(tmp_path: Path) -> None:
    made(tmp_path)

    found = find_finished(tmp_path, "finetune", PRINT)

    assert found
    assert isinstance(found.artifact, Text)
    assert [row["text"] for row in (*found.artifact.train(), *found.artifact.held_out())] == ["one"]


def test_a_stage_that_is_not_there_is_not_finished(tmp_path: Path) -> None:
    assert find_finished(tmp_path, "finetune", PRINT) is None


def test_runs_can_be_moved(tmp_path: Path) -> None:
    made(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "moved")

    found = find_finished(tmp_path / "moved", "finetune", PRINT)

    assert found
    assert isinstance(found.artifact, Text)
    assert found.artifact.parts[0].paths[0].is_file()


def test_a_fingerprint_that_begins_like_another_is_noticed(tmp_path: Path) -> None:
    folder = made(tmp_path)

    with pytest.raises(StageError) as raised:
        find_finished(tmp_path, "finetune", "f8d922c0" + "1" * 56)

    expected = f"{folder}: this folder holds another stage, whose fingerprint {PRINT} begins alike; move it away"
    assert str(raised.value) == expected


def test_an_artifact_that_lost_a_file_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path)
    (folder / "artifact" / "data.jsonl").unlink()

    with pytest.raises(StageError) as raised:
        find_finished(tmp_path, "finetune", PRINT)

    wrong = "the finished stage is damaged: data.jsonl is missing"
    expected = f"{folder}: {wrong}; put it back, or run again with --again finetune"
    assert str(raised.value) == expected


def test_a_changed_byte_is_found_where_content_is_looked_at(tmp_path: Path) -> None:
    folder = made(tmp_path)
    (folder / "artifact" / "data.jsonl").write_text('{"text": "two"}\n')

    with pytest.raises(StageError, match=r"data\.jsonl is not as it was written"):
        read_finished(folder).check(hash_file)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda text: text[: len(text) // 2], "Expecting"),
        (lambda text: text.replace('"seconds": 1.5', '"seconds": 1.7'), "it is not as it was written"),
        (lambda text: text.replace('"method"', '"lethod"'), "it is not as it was written"),
        (lambda text: "[]", "it is no JSON object"),
    ],
)
def test_a_damaged_description_of_a_stage_is_refused(tmp_path: Path, harm: Callable[[str], str], why: str) -> None:
    folder = made(tmp_path)
    (folder / "stage.json").write_text(harm((folder / "stage.json").read_text()))

    with pytest.raises(StageError) as raised:
        find_finished(tmp_path, "finetune", PRINT)

    told = str(raised.value)
    assert told.startswith(f"{folder}: stage.json of the finished stage cannot be read ({why}")
    assert told.endswith("); put it back, or run again with --again finetune")


def test_a_stage_of_an_earlier_version_has_no_seal_and_is_read(tmp_path: Path) -> None:
    folder = made(tmp_path)
    facts = json.loads((folder / "stage.json").read_text())
    del facts["seal"]
    write_json(folder / "stage.json", facts)

    assert find_finished(tmp_path, "finetune", PRINT)


def test_all_finished_stages_are_verified(tmp_path: Path) -> None:
    made(tmp_path, "whole")
    harmed = made(tmp_path, "harmed")
    (harmed / "artifact" / "data.jsonl").write_text('{"text": "two"}\n')
    (tmp_path / "stages" / "other-00000000.partial").mkdir()

    first, second = verify(finished_in(tmp_path))

    assert (second.folder.name, second.size, second.wrong) == ("whole-f8d922c0", 16, None)
    assert (first.folder, first.size) == (harmed, 16)
    expected = "the finished stage is damaged: data.jsonl is not as it was written"
    assert str(first.wrong) == f"{harmed}: {expected}; put it back, or run again with --again harmed"


def test_a_stage_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path)
    write_json(folder / "stage.json", {"format": 99})

    with pytest.raises(StageError) as raised:
        find_finished(tmp_path, "finetune", PRINT)

    expected = (
        f"{folder}: stage.json has format 99, and this alignkit reads format 1; "
        "move the folder away, or use the version that wrote it"
    )
    assert str(raised.value) == expected


def test_a_rerun_replaces_what_was_finished(tmp_path: Path) -> None:
    made(tmp_path, text="one")
    before = find_finished(tmp_path, "finetune", PRINT)
    made(tmp_path, text="two")

    after = find_finished(tmp_path, "finetune", PRINT)

    assert before
    assert after
    assert before.content != after.content


def test_the_artifacts_other_facts_survive(tmp_path: Path) -> None:
    partial = rundir.partial_folder(tmp_path, "finetune", PRINT)
    (partial / "artifact").mkdir(parents=True)
    (partial / "artifact" / "config.json").write_text("{}")
    policy = Policy(name="finetune", fingerprint=PRINT, path=partial / "artifact", load="4bit")
    finish(partial, policy, {"fingerprint": PRINT})

    found = find_finished(tmp_path, "finetune", PRINT)

    assert found
    assert found.artifact == policy.model_copy(update={"path": found.folder / "artifact"})


def test_a_stage_that_was_complete_when_its_process_died_is_only_renamed(tmp_path: Path) -> None:
    folder = made(tmp_path)
    partial = folder.rename(tmp_path / "stages" / f"{folder.name}.partial")

    assert finish_complete(partial)
    assert find_finished(tmp_path, "finetune", PRINT)


def test_a_complete_stage_that_is_damaged_is_not_renamed(tmp_path: Path) -> None:
    folder = made(tmp_path)
    partial = folder.rename(tmp_path / "stages" / f"{folder.name}.partial")
    (partial / "artifact" / "data.jsonl").write_text("")

    assert not finish_complete(partial)


def test_who_holds_a_stage_is_named(tmp_path: Path) -> None:
    partial = rundir.partial_folder(tmp_path, "finetune", PRINT)

    with hold(partial):
        with pytest.raises(LockedError) as raised:
            check_free(partial)
        holder = json.loads((tmp_path / "stages" / ".locks" / "finetune-f8d922c0.1" / "holder.json").read_text())
    expected = (
        f"{tmp_path}/stages/finetune-f8d922c0: process {holder['pid']} on {holder['host']} is working on it; "
        "wait for it, or stop it"
    )
    assert str(raised.value) == expected


def test_a_holder_who_has_not_said_who_he_is_is_another_process(tmp_path: Path) -> None:
    assert str(busy(rundir.partial_folder(tmp_path, "finetune", PRINT))) == (
        f"{tmp_path}/stages/finetune-f8d922c0: another process is working on it; wait for it, or stop it"
    )


def test_a_lock_is_free_once_its_holder_lets_go(tmp_path: Path) -> None:
    partial = rundir.partial_folder(tmp_path, "finetune", PRINT)
    with hold(partial):
        pass

    check_free(partial)


def test_folders_of_ours_are_names_that_no_recipe_can_have(tmp_path: Path) -> None:
    inside = (
        rundir.stage_folder(tmp_path, "x", "0"),
        rundir.source_folder(tmp_path, "x", "0"),
        rundir.zygote_log(tmp_path),
    )

    assert tuple(path.relative_to(tmp_path).parts[0] for path in inside) == rundir.RESERVED


def test_everything_has_its_place_under_the_runs() -> None:
    runs, finger = Path("runs"), "0123456789"

    places = [
        rundir.stage_folder(runs, "x", finger),
        rundir.partial_folder(runs, "x", finger),
        rundir.source_folder(runs, "x", finger),
        rundir.lock_file(rundir.partial_folder(runs, "x", finger)),
        rundir.report_path(runs / "rlhf" / "one"),
        rundir.comparison_path(runs / "rlhf" / "one"),
        rundir.file_hashes(runs),
        rundir.zygote_log(runs),
    ]

    assert [place.as_posix() for place in places] == [
        "runs/stages/x-01234567",
        "runs/stages/x-01234567.partial",
        "runs/sources/x-01234567",
        "runs/stages/.locks/x-01234567.lock",
        "runs/rlhf/one/report.html",
        "runs/rlhf/one/comparison.json",
        "runs/cache/hashes.json",
        "runs/cache/zygote.log",
    ]


def test_each_run_has_a_folder_of_its_own_and_latest_names_the_last(tmp_path: Path) -> None:
    runs = tmp_path / "far" / "runs"

    folders = [rundir.new_run(runs, "rlhf", f"seed = {n}", {"seed": n}, {"state": "running"}) for n in range(20)]

    written = {path.name: path.read_text() for path in folders[-1].iterdir()}
    assert len({*folders}) == 20
    assert {rundir.TIMED.fullmatch(folder.name) is not None for folder in folders} == {True}
    assert written == {
        "recipe.toml": "seed = 19",
        "plan.json": '{\n  "seed": 19\n}\n',
        "run.json": '{\n  "state": "running"\n}\n',
    }
    assert (runs / "rlhf" / "latest").readlink() == Path(folders[-1].name)
    assert {path.name for path in (runs / "rlhf").iterdir()} == {"latest", *(folder.name for folder in folders)}


def test_where_no_link_can_be_made_the_newest_is_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "symlink_to", lambda *words: (_ for _ in ()).throw(OSError()))
    run = rundir.new_run(tmp_path, "rlhf", "", {}, {"state": "running"})

    assert [path.name for path in (tmp_path / "rlhf").iterdir()] == [run.name]
    assert rundir.latest_run(tmp_path / "rlhf") == run


def test_a_note_is_found_again_by_all_that_it_depends_on(tmp_path: Path) -> None:
    path = note_path(tmp_path / "far" / "notes", "tokens", {"a": "\ud800", "b": Path("x")}, 2)
    nothing = read_note(path)
    write_note(path, {"tokens": 2})
    write_note(path, {"tokens": 3})

    again = note_path(tmp_path / "far" / "notes", "tokens", {"b": Path("x"), "a": "\ud800"}, 2)
    others = {
        note_path(tmp_path / "far" / "notes", "tokens", {"a": "\ud800", "b": Path("x")}, 3),
        note_path(tmp_path / "far" / "notes", "audit", {"a": "\ud800", "b": Path("x")}, 2),
    }

    assert (nothing, read_note(again), path in others) == ({}, {"tokens": 3}, False)
    assert path.read_text() == '{\n  "tokens": 3\n}\n'
    assert re.fullmatch(r"tokens-[0-9a-f]{16}\.json", path.name)


def test_a_damaged_note_is_none(tmp_path: Path) -> None:
    (tmp_path / "note.json").write_text("{")

    assert read_note(tmp_path / "note.json") == {}


def test_runs_that_cannot_be_written_to_are_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")

    with pytest.raises(DiskError) as raised:
        rundir.new_run(tmp_path / "runs", "rlhf", "", {}, {})

    expected = (
        f"{tmp_path}/runs: the folder for runs cannot be written to (Not a directory); choose another with --runs"
    )
    assert str(raised.value) == expected


def test_a_source_is_written_once(tmp_path: Path) -> None:
    written = []

    def write(folder: Path) -> None:
        written.append(folder)
        (folder / "rows.jsonl").write_text("{}\n")

    place = rundir.prepare(tmp_path / "sources" / "demos-1234", write)
    rundir.prepare(place, write)

    assert len(written) == 1
    assert (place / "rows.jsonl").is_file()


def test_the_folder_of_sources_is_made_with_all_above_it(tmp_path: Path) -> None:
    place = rundir.prepare(tmp_path / "far" / "sources" / "demos-1234", lambda folder: (folder / folder.name).touch())

    assert [path.name for path in place.iterdir()] == ["demos-1234.partial"]


def test_a_source_half_written_by_a_crash_is_written_anew(tmp_path: Path) -> None:
    staged = tmp_path / "sources" / "demos-1234.partial"
    staged.mkdir(parents=True)
    (staged / "junk").touch()

    place = rundir.prepare(tmp_path / "sources" / "demos-1234", lambda folder: (folder / "rows").touch())

    assert [path.name for path in place.iterdir()] == ["rows"]


def commit(folder: Path, *steps: int) -> None:
    for step in steps:
        staged = checkpoints.staged_folder(folder, step)
        checkpoints.begin(staged)
        write_step(staged, step)
        checkpoints.commit(staged, {"seconds": float(step)})


def write_step(folder: Path, step: int) -> None:
    (folder / "weights").write_text(f"weights {step}")
    (folder / "training_args.bin").write_text("a token")


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    commit(tmp_path, 1, 2, 10)

    assert list(checkpoints.steps(tmp_path)) == [10, 2]


def test_the_pickled_arguments_of_a_trainer_are_not_kept(tmp_path: Path) -> None:
    commit(tmp_path, 1)

    assert sorted(path.name for path in (tmp_path / "step-1").iterdir()) == ["manifest.json", "weights"]


def test_a_checkpoint_that_was_not_written_to_its_end_leaves_the_older_one(tmp_path: Path) -> None:
    commit(tmp_path, 1)
    checkpoints.begin(checkpoints.staged_folder(tmp_path, 2))
    write_step(checkpoints.staged_folder(tmp_path, 2), 2)

    newest = checkpoints.newest(tmp_path, lambda name, wrong: None)
    assert newest
    assert newest.step == 1


def test_contents_are_read_by_one_process_alone(tmp_path: Path) -> None:
    commit(tmp_path, 1)
    (tmp_path / "step-1" / "weights").write_text("weightz 1")

    read, trusted = (checkpoints.newest(tmp_path, lambda name, wrong: None, read=read) for read in (True, False))

    assert (read, trusted and trusted.step) == (None, 1)


@pytest.mark.parametrize(
    ("harm", "wrong"),
    [
        (lambda file: file.unlink(), "weights is missing"),
        (lambda file: file.write_text(""), "weights has 0 bytes instead of 9"),
        (lambda file: file.write_text("weightz 2"), "weights is not as it was written"),
        (lambda file: (file.parent / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_told(tmp_path: Path, harm, wrong: str) -> None:  # type: ignore[no-untyped-def]
    commit(tmp_path, 1, 2)
    harm(tmp_path / "step-2" / "weights")
    told = []

    newest = checkpoints.newest(tmp_path, lambda name, wrong: told.append((name, wrong)))

    assert newest
    assert (newest.step, told) == (1, [("step-2", wrong)])


def test_what_a_crash_left_is_discarded(tmp_path: Path) -> None:
    commit(tmp_path, 1, 2)
    (tmp_path / "step-3.partial").mkdir()
    (tmp_path / "step-2" / "weights").unlink()
    kept = checkpoints.newest(tmp_path, lambda name, wrong: None)

    checkpoints.discard_others(tmp_path, kept)

    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_listing_reaches_into_folders(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")

    listing = sync_and_list(tmp_path)

    assert listing["base/config.json"]["bytes"] == 2
    assert damage(tmp_path, listing, hash_file) == ""


TOLD = [
    Metrics("align", 1, 2, {"loss": 0.5}, 0.1),
    Warned("align", "it is hot", "open a window"),
    Metrics("align", 2, 2, {"loss": 0.25}, 0.2),
    Sample("align", {"prompt": "hé", "score": 1.0}),
    Result("align", "loss", 1.0, None, 0.1),
]


def test_a_journal_is_read_in_the_order_in_which_it_was_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    for event in TOLD:
        journal.tell(event)
    journal.close()

    assert read_journal("align", tmp_path) == TOLD


def test_a_line_that_is_half_written_waits(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    journal.tell(TOLD[0])
    whole = (tmp_path / METRICS).read_bytes()
    (tmp_path / METRICS).write_bytes(whole[:10])
    follower = Follower("align", tmp_path)
    early = list(follower.news())
    (tmp_path / METRICS).write_bytes(whole)

    assert (early, list(follower.news())) == ([], TOLD[:1])


def test_a_later_line_waits_for_an_earlier_one_in_the_other_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    journal.tell(TOLD[0])
    journal.tell(TOLD[1])
    metrics = (tmp_path / METRICS).read_bytes()
    (tmp_path / METRICS).write_bytes(b"")
    follower = Follower("align", tmp_path)
    early = list(follower.news())
    (tmp_path / METRICS).write_bytes(metrics)

    assert (early, list(follower.news())) == ([], TOLD[:2])


def test_a_journal_is_followed_event_by_event(tmp_path: Path) -> None:
    journal, follower = Journal(tmp_path, {}), Follower("align", tmp_path)

    for event in TOLD:
        journal.tell(event)

        assert list(follower.news()) == [event]


def test_a_line_waits_for_the_one_before_it_after_others_were_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    for event in TOLD[:3]:
        journal.tell(event)
    events = (tmp_path / EVENTS).read_bytes()
    (tmp_path / EVENTS).write_bytes(b"")
    follower = Follower("align", tmp_path)
    early = list(follower.news())
    (tmp_path / EVENTS).write_bytes(events)

    assert (early, list(follower.news())) == (TOLD[:1], TOLD[1:3])


def test_a_stage_that_has_told_nothing_has_an_empty_journal(tmp_path: Path) -> None:
    assert read_journal("align", tmp_path) == []


def damaged_metrics(folder: Path, harm: Callable[[bytes], bytes]) -> None:
    journal = Journal(folder, {})
    for event in TOLD:
        journal.tell(event)
    journal.close()
    (folder / METRICS).write_bytes(harm((folder / METRICS).read_bytes()))


BAD_LINE = Warned(
    "align",
    "1 line of metrics.jsonl cannot be read and is left out",
    "the stage's result is not affected; check the disk",
)


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text.replace(b'"n": 0', b'"n", 0'),
        lambda text: text.replace(b'"n": 0', b'"o": 0'),
        lambda text: text.replace(b'"of": 2', b'"og": 2', 1),
        lambda text: text.replace(b'"values": {"loss": 0.5}', b'"values": [0.5]'),
        lambda text: text.replace(b"0.5", b'"."'),
        lambda text: b"\xff" + text,
        lambda text: b"5" + text[text.index(b"\n") :],
    ],
)
def test_a_line_that_cannot_be_read_is_left_out_and_told(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    damaged_metrics(tmp_path, harm)

    assert read_journal("align", tmp_path) == [*TOLD[1:], BAD_LINE]


def test_lines_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    damaged_metrics(tmp_path, lambda text: text.replace(b'"of"', b'"og"'))

    lines = "2 lines of metrics.jsonl cannot be read and are left out"
    assert read_journal("align", tmp_path) == [
        *(event for event in TOLD if not isinstance(event, Metrics)),
        Warned("align", lines, "the stage's result is not affected; check the disk"),
    ]


def test_of_lines_with_one_number_the_first_is_told_first(tmp_path: Path) -> None:
    damaged_metrics(tmp_path, lambda text: text.replace(b'"n": 2', b'"n": 0'))

    assert read_journal("align", tmp_path) == [TOLD[0], TOLD[2], TOLD[1], *TOLD[3:]]


def test_a_last_line_that_is_cut_off_is_told(tmp_path: Path) -> None:
    damaged_metrics(tmp_path, lambda text: text[:-9])

    assert read_journal("align", tmp_path) == [*TOLD[:2], *TOLD[3:], BAD_LINE]


def test_any_bit_of_a_journal_may_flip(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    for event in TOLD:
        journal.tell(event)
    journal.close()

    for name in (METRICS, EVENTS):
        whole = (tmp_path / name).read_bytes()
        for bit in range(0, 8 * len(whole), 7):
            harmed = bytearray(whole)
            harmed[bit // 8] ^= 1 << bit % 8
            (tmp_path / name).write_bytes(harmed)
            assert 3 < len(read_journal("align", tmp_path)) < 8
        (tmp_path / name).write_bytes(whole)


def test_a_lost_line_does_not_hold_up_the_later_ones_while_a_stage_runs(tmp_path: Path) -> None:
    damaged_metrics(tmp_path, lambda text: text.replace(b'"n": 0', b'"n", 0'))
    follower = Follower("align", tmp_path)

    first, second = list(follower.news()), list(follower.news())

    assert (first, second) == ([], TOLD[1:])


def test_a_journal_that_was_cut_goes_on_with_a_line_of_its_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    for event in TOLD[:3]:
        journal.tell(event)
    marks = journal.marks()
    journal.close()
    (tmp_path / METRICS).write_bytes((tmp_path / METRICS).read_bytes()[:-9])

    resumed = Journal(tmp_path, marks)
    for event in TOLD[3:]:
        resumed.tell(event)
    resumed.close()

    assert resumed.cut == {METRICS: f"{marks[METRICS] - 9} of {marks[METRICS]} bytes"}
    assert read_journal("align", tmp_path) == [*TOLD[:2], *TOLD[3:], BAD_LINE]


def test_a_resumed_journal_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    for event in TOLD[:2]:
        journal.tell(event)
    marks = journal.marks()
    journal.tell(Metrics("align", 2, 2, {"loss": 9.0}, 0.2))
    journal.close()

    resumed = Journal(tmp_path, marks)
    for event in TOLD[2:]:
        resumed.tell(event)
    resumed.close()

    assert read_journal("align", tmp_path) == TOLD


def test_a_journal_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_text('{"n": 0, "torn')

    Journal(tmp_path, {}).close()

    assert read_journal("align", tmp_path) == []


def test_figures_that_are_not_finite_are_valid_json_and_come_back_as_nan(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    journal.tell(Metrics("align", 1, None, {"loss": float("inf")}))
    journal.close()

    assert json.loads((tmp_path / METRICS).read_text())["values"] == {"loss": None}
    assert [str(event.values) for event in read_journal("align", tmp_path) if isinstance(event, Metrics)] == [
        "{'loss': nan}"
    ]
