"""Who has a stage among machines that share its folder: one at a time, also where one vanishes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from alignkit.errors import LockedError
from alignkit.store.heartbeat import Heartbeat
from alignkit.store.leases import Hold, held
from alignkit.store.locks import check_free, hold
from alignkit.store.rundir import lock_file, prepare, source_lock

PROCESS = Path(__file__).parents[1] / "working_process.py"
HERE, THERE = Heartbeat(0.05, 0.5, "here"), Heartbeat(0.05, 0.5, "there")


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "stages" / "first-01234567.partial"


@contextmanager
def working(partial: Path, system: str, steps: int = 10_000) -> "Iterator[subprocess.Popen[str]]":
    """Have a process work on a stage; it is killed at the end."""
    line = [sys.executable, str(PROCESS), str(partial), system, str(steps)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("works")
        try:
            yield process
        finally:
            process.kill()


def wait_until(there: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not there():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def lost(lock: Path, number: int = 1, system: str = "there") -> Path:
    """Lay a lease that has not been heard of for an hour."""
    folder = lock.with_suffix(f".{number}")
    folder.mkdir(parents=True)
    file = folder / "holder.json"
    file.write_text(f'{{"pid": 1, "host": "far", "system": "{system}"}}')
    os.utime(file, (time.time() - 3600,) * 2)
    return file


@pytest.mark.parametrize("lock_reaches", [True, False])
def test_one_of_another_machine_that_is_heard_of_has_the_stage(partial: Path, lock_reaches: bool) -> None:
    with hold(partial, THERE):
        if not lock_reaches:
            lock_file(partial).unlink()
        with pytest.raises(LockedError) as raised:
            check_free(partial, HERE)
        with pytest.raises(LockedError), hold(partial, HERE):
            pass

    assert str(raised.value).endswith("is working on it; wait for it, or stop it")


def test_a_killed_process_of_this_machine_is_free_at_once(partial: Path) -> None:
    with working(partial, "here") as process:
        process.kill()
        process.wait()
        began = time.monotonic()

        with hold(partial, Heartbeat(system="here")) as mine:
            assert (mine.lost, mine.lease.number) == ({}, 2)

    assert time.monotonic() - began < 1


def test_a_killed_process_of_another_machine_is_lost_after_a_while(partial: Path) -> None:
    with working(partial, "there") as process:
        process.kill()
        process.wait()
        killed = time.monotonic()

        with hold(partial, HERE) as mine:
            waited = time.monotonic() - killed
            assert mine.lost["pid"] == process.pid

    assert waited > 0.4


def test_one_that_wakes_up_after_it_was_taken_over_ends_without_another_word(partial: Path) -> None:
    with working(partial, "there") as process:
        wait_until((partial / "steps.txt").exists)
        process.send_signal(signal.SIGSTOP)  # its machine is cut off: it keeps the system's lock, and is silent

        with hold(partial, HERE) as mine:
            written = (partial / "steps.txt").read_text()
            process.send_signal(signal.SIGCONT)
            assert process.wait(10) == LockedError.status
            assert (partial / "steps.txt").read_text().count("\n") - written.count("\n") <= 1  # the one it was at
            with pytest.raises(LockedError):
                check_free(partial, Heartbeat(system="here"))

    assert mine.lost["pid"] == process.pid


def test_what_has_let_go_is_free_for_all(partial: Path) -> None:
    with hold(partial, THERE):
        pass

    with hold(partial, HERE) as mine:
        assert (mine.lost, mine.lease.number) == ({}, 2)


@pytest.mark.parametrize("attempt", range(4))
def test_of_several_that_take_one_over_one_has_it_also_where_locks_do_not_reach(tmp_path: Path, attempt: int) -> None:
    lost(tmp_path / "first.lock")
    ready, done = threading.Barrier(4, timeout=10), threading.Barrier(4, timeout=10)
    found: list[Hold | None] = []

    def take(number: int) -> None:
        lock = tmp_path / f"first.lock-of-{number}"
        ready.wait()
        with held(lock, Heartbeat(0.01, 0.1, f"machine {number}"), patience=0.1) as mine:
            found.append(mine)
            done.wait()

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(mine is not None for mine in found) == [False, False, False, True]


def test_a_lock_that_stays_after_its_machine_is_no_hindrance(partial: Path) -> None:
    lock = lock_file(partial)
    lost(lock)
    with ExitStack() as stack:
        from filelock import FileLock

        stack.enter_context(FileLock(lock))

        with hold(partial, HERE) as mine:
            assert mine.lost["host"] == "far"
            with pytest.raises(LockedError):
                check_free(partial, HERE)


def test_one_that_is_heard_of_after_a_long_outage_is_not_lost(tmp_path: Path) -> None:
    file = lost(tmp_path / "x.lock")
    threading.Timer(0.1, file.touch).start()

    assert not Heartbeat(0.2, 0.5).ends(file)
    assert Heartbeat(0.02, 0.05).ends(file)


def test_a_heartbeat_is_compared_with_a_file_beside_it_and_no_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "beats"
    file.touch()
    monkeypatch.setattr(time, "time", lambda: 1e12)

    assert not Heartbeat().is_lost(file)
    assert Heartbeat(lost_after=-1).is_lost(file)
    assert not Heartbeat(lost_after=-1).is_lost(tmp_path / "gone")


def test_one_that_was_taken_over_knows_it_also_when_the_other_has_let_go(partial: Path) -> None:
    with hold(partial, THERE) as before:
        assert not before.lease.is_taken_over
        lock_file(partial).with_suffix(".2").mkdir()

        assert before.lease.is_taken_over


def test_what_a_crash_has_left_half_made_is_cleared_away(partial: Path) -> None:
    folder = lock_file(partial).parent
    (folder / "first-01234567.new-0badcafe").mkdir(parents=True)
    lost(lock_file(partial), 3, "here")

    with hold(partial, HERE):
        assert sorted(path.name for path in folder.iterdir()) == ["first-01234567.4", "first-01234567.lock"]


def test_a_source_that_another_machine_began_to_write_is_written_by_this_one(tmp_path: Path) -> None:
    folder = tmp_path / "sources" / "x-01234567"
    file = lost(source_lock(folder))
    (folder.with_suffix(".partial")).mkdir()
    threading.Timer(0.1, file.unlink).start()  # it has let go

    prepare(folder, lambda staged: (staged / "rows").touch())

    assert [path.name for path in folder.iterdir()] == ["rows"]


@pytest.mark.slow
def test_two_machines_that_are_killed_and_cut_off_never_work_at_once(partial: Path) -> None:
    chances, steps = random.Random(0), 3000
    running: list[subprocess.Popen[str]] = []
    until = time.monotonic() + 120
    while time.monotonic() < until:
        running = [process for process in running if process.poll() is None]
        while len(running) < 2:
            line = [sys.executable, str(PROCESS), str(partial), chances.choice(["here", "there"]), str(steps)]
            running.append(subprocess.Popen(line, stdout=subprocess.DEVNULL, text=True))
        time.sleep(chances.uniform(0.1, 0.8))
        victim = chances.choice(running)
        if chances.random() < 0.5:
            victim.kill()
        else:
            victim.send_signal(signal.SIGSTOP)
            time.sleep(chances.uniform(0.3, 1.2))
            victim.send_signal(signal.SIGCONT)
        if (partial / "steps.txt").exists() and len((partial / "steps.txt").read_text().split()) >= steps:
            break
    for process in running:
        process.kill()
        process.wait()

    turns = list(map(int, (partial / "steps.txt").read_text().split()))
    assert len(turns) >= steps
    assert len(set(turns)) > 10
    late = sum(after < before for before, after in pairwise(turns))
    assert late <= len(set(turns)) // 4, "more than the one line that a process was at when it was cut off"
