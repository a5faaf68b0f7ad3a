"""The console: what is shown while a recipe runs, and what came of it."""

import io
from contextlib import suppress
from pathlib import Path

import pytest

from alignkit.contract.events import (
    Doing,
    Estimated,
    Event,
    Metrics,
    Result,
    Sample,
    StageFailed,
    StageFinished,
    StageStarted,
    Stopping,
    Warned,
)
from alignkit.show.colours import painted
from alignkit.show.console import Console
from alignkit.show.metrics import achieved, telling
from alignkit.show.progress import ASCII_BLOCKS, MOST, Progress, Running, Trend
from alignkit.text import duration, give_or_take, number, size

FOLDER = "/somewhere/runs/stages/align-f8d922c0"


class FakeTerminal(io.StringIO):
    """A file that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def started(stage: str = "align", resumed: bool = False) -> StageStarted:
    return StageStarted(stage, "ppo", FOLDER, resumed)


def metrics(step: int, of: int | None = 60, seconds: float = 0.0, **values: float) -> Metrics:
    return Metrics("align", step, of, {key.replace("__", "/"): value for key, value in values.items()}, seconds)


def finished(reused: bool = False) -> StageFinished:
    figures = (Result("align", "reward", 0.51, 0.95, 0.35), Result("align", "KL", None, 2.7))
    return StageFinished("align", "ppo", "Policy", FOLDER, 200.4, reused, figures)


def test_a_pipe_gets_a_line_when_a_stage_begins_and_one_when_it_ends() -> None:
    file = io.StringIO()

    with Console(["align"], file) as console:
        console(started())
        console(metrics(1, loss=2.0))
        console(finished())

    assert file.getvalue() == (
        "align: ppo begins\nalign: done, Policy in 3 min 20 s; reward 0.51 -> 0.95 (floor 0.35); KL 2.7\n"
    )


def test_a_pipe_gets_a_line_of_figures_every_so_often() -> None:
    file, clock = io.StringIO(), Clock()

    with Console(["align"], file, clock, every=15) as console:
        console(started())
        for step in range(1, 41):
            clock.seconds = float(step)
            console(metrics(step, seconds=float(step), loss=2.0, objective__kl=1.5, objective__scores=0.25))

    assert file.getvalue().splitlines() == [
        "align: ppo begins",
        "align: 15/60, reward 0.25, KL 1.5, loss 2, 45 s left",
        "align: 30/60, reward 0.25, KL 1.5, loss 2, 30 s left",
    ]


def test_a_stage_that_resumes_says_so() -> None:
    file = io.StringIO()

    with Console(["align"], file) as console:
        console(started(resumed=True))

    assert file.getvalue() == "align: ppo resumes\n"


def test_a_reused_stage_says_so() -> None:
    file = io.StringIO()

    with Console(["align"], file) as console:
        console(StageFinished("align", "ppo", "Policy", FOLDER, 41.0, reused=True))

    assert file.getvalue() == "align: reused, made in 41 s\n"


def test_a_run_that_ends_early_says_how_far_its_stage_was() -> None:
    file = io.StringIO()

    with suppress(ZeroDivisionError), Console(["align"], file) as console:
        console(started())
        console(metrics(7, loss=2.0))
        raise ZeroDivisionError

    assert file.getvalue().splitlines()[-1] == "align: stopped, 7/60, loss 2"


def test_a_warning_is_shown_at_once_and_again_at_the_end() -> None:
    file = io.StringIO()

    with Console(["align"], file) as console:
        console(Warned("align", "3 prompts are too long", "raise max_length"))
    closing = console.closing(None, Path("/somewhere"))

    assert file.getvalue() == "warning: align: 3 prompts are too long; raise max_length\n"
    assert closing == ["warning:  align: 3 prompts are too long; raise max_length"]


def test_the_closing_table_shows_what_was_made_and_where_it_lies() -> None:
    console = Console(["align"], io.StringIO())

    console(finished())

    assert console.closing(None, Path("/somewhere")) == [
        "stage  made    time        lies in                     before -> after",
        "align  Policy  3 min 20 s  runs/stages/align-f8d922c0  reward 0.51 -> 0.95 (floor 0.35)",
        "                                                       KL 2.7",
    ]


def test_the_closing_table_fits_forty_columns() -> None:
    console = Console(["align"], io.StringIO())

    console(finished(reused=True))

    assert console.closing(40, Path("/somewhere")) == [
        "align",
        "  made: Policy",
        "  time: reused",
        "  lies in: runs/stages/align-f8d922c0",
        "  before -> after: reward 0.51 -> 0.95",
        "    (floor 0.35)",
        "  KL 2.7",
    ]


def events() -> list[Event]:
    values = {"objective__scores": 0.5, "objective__kl": 2.0, "loss": 1.0, "tokens_per_second": 12345.0}
    return [started(), metrics(1, seconds=1.0, **values), metrics(30, seconds=30.0, **values)]


def test_a_terminal_shows_place_progress_time_left_and_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    console = drawn(monkeypatch, columns=60, encoding="utf-8")

    assert console == [
        "[3 of 4] align ppo 30/60  30 s left",
        "━" * 30 + "─" * 30,
        "reward 0.5 ▁▁  KL 2 ▁▁  loss 1 ▁▁  tokens/s 12.3k",
    ]


def test_a_narrow_terminal_shows_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    console = drawn(monkeypatch, columns=24, encoding="utf-8")

    assert console == ["[3 of 4] align ppo 30/60", "━" * 12 + "─" * 12, "reward 0.5 ▁▁  KL 2"]


def test_a_terminal_without_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    console = drawn(monkeypatch, columns=40, encoding="ascii")

    assert console[1:] == ["#" * 20 + "-" * 20, "reward 0.5 __  KL 2 __  loss 1"]


def drawn(monkeypatch: pytest.MonkeyPatch, columns: int, encoding: str, sample: bool = False) -> list[str]:
    """Draw a running stage on a terminal of that width, and give its lines."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    file = FakeTerminal()
    file.encoding = encoding
    console = Console(["a", "b", "align", "c"], file)
    for event in events():
        console(event)
    if sample:
        console(Sample("align", {"prompt": "How was it? " * 20, "answer": "Lovely. " * 50}))
    return lines_of(console, columns)


def lines_of(console: Console, columns: int = 120) -> list[str]:
    """Return the lines that a console draws now."""
    from rich.console import Console as Page

    page = io.StringIO()
    Page(file=page, width=columns).print(console.frame())
    return page.getvalue().splitlines()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = FakeTerminal()

    with Console(["align"], file) as console:
        console(started())

    assert file.getvalue() == "align: ppo begins\n"


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    file = FakeTerminal()

    console = Console(["align"], file)
    console(Warned("align", "odd", "mend it"))

    assert file.getvalue() == "warning: align: odd; mend it\n"


def test_the_time_left_counts_from_the_first_step_that_was_seen() -> None:
    running = Running("align", "ppo", since=0.0)

    running.heard(metrics(400, of=500, seconds=4.0), 0.0)
    running.heard(metrics(450, of=500, seconds=104.0), 0.0)

    assert running.seconds_left(0.0) == 100.0


def test_the_time_left_counts_down_while_a_step_is_taken_and_waits_for_one_that_is_late() -> None:
    running = Running("align", "ppo", since=0.0)

    running.heard(metrics(1, of=4, seconds=10.0), 10.0)
    running.heard(metrics(2, of=4, seconds=20.0), 20.0)

    assert [running.seconds_left(now) for now in (20.0, 24.0, 30.0, 99.0)] == [20.0, 16.0, 10.0, 10.0]


def test_the_time_left_is_not_told_where_the_number_of_steps_is_unknown() -> None:
    running = Running("align", "ppo", since=0.0)

    running.heard(metrics(1, of=None, seconds=1.0), 1.0)
    running.heard(metrics(2, of=None, seconds=2.0), 2.0)

    assert (running.progress, running.seconds_left(2.0)) == ("step 2", None)


def test_before_there_are_steps_the_time_left_is_what_was_estimated() -> None:
    running = Running("align", "ppo", since=5.0, estimate=Estimated("align", 60.0, 40.0))

    assert [running.seconds_left(now) for now in (5.0, 25.0, 90.0)] == [60.0, 40.0, 0.0]


def test_the_time_left_holds_what_is_estimated_for_measuring_after_the_last_step() -> None:
    running = Running("align", "ppo", since=0.0, estimate=Estimated("align", 60.0, 40.0))

    running.heard(metrics(1, of=3, seconds=5.0), 5.0)
    running.heard(metrics(2, of=3, seconds=15.0), 15.0)
    before_the_last = running.seconds_left(15.0)
    running.heard(metrics(3, of=3, seconds=25.0), 25.0)

    assert (before_the_last, running.seconds_left(25.0), running.seconds_left(29.0)) == (25.0, 15.0, 11.0)


def test_a_trend_has_few_points_whatever_the_steps_and_keeps_its_shape() -> None:
    trend = Trend()

    for step in range(10_000):
        trend.add(float(step))

    assert len(trend.points) < MOST
    assert trend.points == sorted(trend.points)
    assert trend.drawn(8)[0] == "▁"
    assert trend.drawn(8)[-1] == "█"
    assert all(len(trend.drawn(room)) <= room for room in range(2, 30))


def test_a_trend_is_drawn_between_its_lowest_and_its_highest_value() -> None:
    trend = Trend([1.0, 2.0, float("nan"), 8.0])

    assert (trend.drawn(9), trend.drawn(9, ASCII_BLOCKS)) == ("▁▂ █", "_. #")


def test_a_trend_takes_whatever_a_method_tells() -> None:
    trend = Trend()

    for value in (1.0, float("inf"), -float("inf"), 1e308, 1e308, float("nan"), 2.0) * MOST:
        trend.add(value)

    assert set(trend.drawn(12)) <= {" ", *"▁▂▃▄▅▆▇█"}


def test_a_terminal_shows_the_time_left_of_the_whole_run() -> None:
    console = Console(["align", "scores"], io.StringIO(), Clock())

    for event in (Estimated("align", 60.0, 40.0), Estimated("scores", 30.0, 0.0), started()):
        console(event)

    assert lines_of(console) == [
        "[1 of 2] align ppo  1 min 00 s left",
        "preparing models and rows  0 s  whole run: 1 min 30 s left",
    ]


def test_what_is_left_of_the_whole_run_is_corrected_by_how_long_stages_take() -> None:
    console = Console(["align", "scores"], io.StringIO(), Clock())

    console(Estimated("align", 100.2, 80.0))
    console(Estimated("scores", 30.0, 0.0))
    console(finished())

    assert lines_of(console) == ["starting the next stage  0 s  whole run: 1 min 00 s left"]


def step_of(stage: str, step: int, of: int, seconds: float, loss: float) -> Metrics:
    return Metrics(stage, step, of, {"loss": loss}, seconds)


def test_stages_that_run_at_the_same_time_have_a_line_each() -> None:
    clock = Clock()
    console = Console(["a", "b", "c"], FakeTerminal(), clock)

    for event in (started("b"), started("a"), Doing("c", "waiting: for memory")):
        console(event)
    for second in (1, 2):
        clock.seconds = float(second)
        console(step_of("a", second, 10, second, 3.0))
        console(step_of("b", second, 4, second, 2.0))

    assert lines_of(console) == [
        "[1 of 3] a ppo 2/10  8 s left  loss 3",
        "[2 of 3] b ppo 2/4  2 s left  loss 2",
        "c: waiting: for memory  2 s",
    ]


def test_a_pipe_gets_a_line_of_each_stage_that_runs_every_so_often() -> None:
    file, clock = io.StringIO(), Clock()

    with Console(["a", "b"], file, clock, every=15) as console:
        console(started("a"))
        console(started("b"))
        for second in range(1, 17):
            clock.seconds = float(second)
            console(step_of("a", second, 100, second, 3.0))
            console(step_of("b", second, 20, second, 2.0))

    assert file.getvalue().splitlines()[2:] == ["a: 15/100, loss 3, 1 min 25 s left", "b: 14/20, loss 2, 5 s left"]


def test_a_failure_is_told_at_once_where_other_stages_go_on() -> None:
    file = io.StringIO()

    with Console(["a", "b"], file) as console:
        for event in (started("a"), started("b"), step_of("a", 3, 10, 1.0, 3.0)):
            console(event)
        console(StageFailed("a", "the loss is NaN", "lower the learning rate", 76))
        console(StageFailed("b", "stopped", "the same command goes on from here", 130))

    assert file.getvalue().splitlines()[2:] == [
        "a: stopped, 3/10, loss 3",
        "a: the loss is NaN; lower the learning rate",
        "b: stopped",
    ]


@pytest.mark.parametrize(("jobs", "left"), [(1, "1 min 55 s"), (2, "1 min 05 s"), (3, "55 s")])
def test_the_whole_run_takes_as_long_as_stages_that_begin_as_soon_as_they_can(jobs: int, left: str) -> None:
    waits = {"a": [], "b": [], "c": [], "d": ["a", "b", "c"]}
    progress = Progress([*waits], Clock(), jobs=jobs, waits=waits)

    for stage, seconds in ("a", 10.0), ("b", 50.0), ("c", 50.0), ("d", 5.0):
        progress.hear(Estimated(stage, seconds, 0.0))
    progress.hear(started("a"))

    assert progress.of_run() == [f"whole run: {left} left"]


def test_a_stage_that_need_not_run_takes_no_time() -> None:
    progress = Progress(["align", "scores"], Clock(), reusable=["scores"])

    progress.hear(Estimated("align", 60.0, 40.0))
    progress.hear(started())

    assert progress.times(progress.running["align"]) == ["1 min 00 s left"]


def test_the_whole_run_is_not_told_where_a_stage_is_not_estimated() -> None:
    console = Console(["align", "scores"], io.StringIO(), Clock())

    for event in (Estimated("align", 60.0, 40.0), started()):
        console(event)

    assert lines_of(console)[0] == "[1 of 2] align ppo  1 min 00 s left"


def test_before_a_stage_begins_it_is_told_what_is_being_done() -> None:
    clock = Clock()
    console = Console(["align"], FakeTerminal(), clock)

    console(Doing("align", "importing torch"))
    clock.seconds = 3.0

    assert lines_of(console) == ["importing torch  3 s"]


def test_a_pipe_is_told_what_is_being_done_once_and_then_every_so_often() -> None:
    file, clock = io.StringIO(), Clock()

    with Console(["align"], file, clock, every=15) as console:
        for second in range(0, 20, 2):
            clock.seconds = float(second)
            console(Doing("align", f"checking stage {second}"))

    assert file.getvalue().splitlines() == ["checking stage 0", "checking stage 16"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (0, "stopping; press Ctrl-C again to stop at once"),
        (7, "stopping after this step; press Ctrl-C again to stop at once and lose the step"),
    ],
)
def test_a_signal_is_acknowledged(steps: int, said: str) -> None:
    file = io.StringIO()

    with Console(["align"], file) as console:
        console(started())
        if steps:
            console(metrics(steps))
        console(Stopping("align"))

    assert file.getvalue().splitlines()[-1] == said


def test_a_quiet_console_tells_warnings_alone() -> None:
    file = io.StringIO()

    with Console(["align"], file, quiet=True) as console:
        for event in (Doing("align", "importing torch"), started(), Warned("align", "odd", "mend it"), finished()):
            console(event)

    assert file.getvalue() == "warning: align: odd; mend it\n"
    assert console.closing(None, Path("/somewhere"))[1].startswith("align  Policy")


def test_no_line_is_wider_than_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (20, 60, 80, 120):
        assert max(map(len, drawn(monkeypatch, columns, "utf-8", sample=True))) <= columns


def test_that_there_is_a_sample_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, 60, "utf-8", sample=True)[-1] == "s: show the last sample"


def test_states_and_warnings_have_colours() -> None:
    lines = ["a  sft  finished 12ab34cd", "b  ppo  will run", "c  ppo  resumes at step 3", "warning:  odd", "d  as is"]

    styles = [[(str(span.style), text.plain[span.start : span.end]) for span in text.spans] for text in painted(lines)]

    assert styles == [
        [("green", "finished 12ab34cd")],
        [("cyan", "will run")],
        [("yellow", "resumes at step 3")],
        [("yellow", "warning:")],
        [],
    ]


def test_the_metrics_that_matter_come_first_under_everyday_names() -> None:
    values = {"lr": 1e-5, "policy/entropy": 3.0, "loss": 1.0, "mood": 7.0, "objective/kl": 2.0, "objective/scores": 0.5}

    assert telling(values) == [("reward", 0.5), ("KL", 2.0), ("loss", 1.0), ("mood", 7.0)]


def test_metrics_that_matter_little_are_shown_where_there_are_no_others() -> None:
    assert telling({"lr": 1e-5}) == [("lr", 1e-5)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (2.30999, "2.31"),
        (12345.6, "12.3k"),
        (7.25e6, "7.25M"),
        (5e-5, "5.000e-05"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_have_the_digits_that_count(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [(0.8031, 0.052, "0.803 ± 0.052"), (12.34, 3.0, "12.3 ± 3.0"), (1.0, 0.0, "1 ± 0"), (1.0, 2e-8, "1.0000 ± 0.0000")],
)
def test_a_value_has_the_digits_that_its_interval_leaves(value: float, half: float, text: str) -> None:
    assert give_or_take(value, half) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (9.97, "10 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (3720, "1 h 02 min")],
)
def test_durations_are_told_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_are_told_in_binary_units() -> None:
    assert (size(3 * 2**30), size(512 * 2**20)) == ("3.0 GiB", "512 MiB")


def test_a_figure_without_a_floor_or_a_before_is_told_without_them() -> None:
    assert achieved(Result("align", "EOS rate", None, 0.9)) == "EOS rate 0.9"
    assert achieved(Result("rm", "accuracy", 0.5, 1.0, 0.9, 4)) == "accuracy 0.5 -> 1 (floor 0.9, 4 rows)"
    assert achieved(Result("rm", "accuracy", None, 1.0, rows=400)) == "accuracy 1 (400 rows)"
    cost = Result("align", "cost/harm", 0.3, 0.04, rows=256, bounds=(None, 0.05))
    assert achieved(cost) == "cost/harm 0.3 -> 0.04 (at most 0.05, 256 rows)"
