"""The report: one file that opens offline and says what the stages' files say."""

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from light_recipes import PLUGIN, desk_with, light_recipe

from alignkit.contract.events import Metrics, Result, Sample, StageFinished, Warned
from alignkit.errors import StageError
from alignkit.plan.plan import Plan
from alignkit.plan.planner import make_plan
from alignkit.run.keeping import RunRecord
from alignkit.show.report import MOST_SAMPLES
from alignkit.show.verdict import verdict_on
from alignkit.sources.fetch import fetch
from alignkit.store import rundir
from alignkit.store.journal import Journal
from alignkit.store.runs import open_run

RECIPE = light_recipe(first="count.steps = 5\ngates.steps.min = 1", spare=True)

FACTS = {
    "stage": "first",
    "method": "count",
    "inputs": {"text": [{"kind": "Text", "name": "corpus", "fingerprint": "0123456789"}]},
    "seconds": 200.4,
    "began": "2026-11-23T12:00:00+00:00",
    "ended": "2026-11-23T12:03:20+00:00",
    "peak_memory": {"memory": 3 * 2**30},
    "processes": 1,
    "device": "cpu",
    "host": "here",
    "versions": {"torch": "2.13.0", "trl": "1.16.0"},
    "artifact": {"kind": "Text", "content": "abc", "files": {}},
}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    desk_with(RECIPE, tmp_path, monkeypatch)
    return make_plan("light.toml", until="second", plugins=[PLUGIN])


def folder_of(plan: Plan, stage: str, *, finished: bool = True) -> Path:
    place = rundir.stage_folder if finished else rundir.partial_folder
    return place(Path("runs").resolve(), stage, str(plan.stage(stage).fingerprint))


def tell(folder: Path, *events: Any, facts: dict[str, Any] | None = None) -> None:
    """Leave a stage's files as if it had told these events."""
    folder.mkdir(parents=True)
    journal = Journal(folder, {})
    for event in events:
        journal.tell(event)
    journal.close()
    if facts is not None:
        (folder / rundir.STAGE).write_text(json.dumps(facts))


def written(plan: Plan, failure: str = "", reused: str = "") -> str:
    """Keep a run of the plan that ends at once, and return its report."""
    record = RunRecord(plan, Path("runs"))
    try:
        with record:
            if reused:
                record(StageFinished(reused, "count", "Text", str(folder_of(plan, reused)), 1.0, reused=True))
            if failure:
                raise StageError(failure)
    except StageError:
        pass
    return (record.folder / "report.html").read_text("utf-8")


class Texts(HTMLParser):
    """Collects what a reader sees, and every tag that is opened and closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.seen.append(" ".join(data.split()))


def test_a_finished_stage_shows_what_it_made_and_how(plan: Plan) -> None:
    tell(folder_of(plan, "first"), Result("first", "steps", 0.0, 5.0, 2.0, 40, (4.0, 6.0)), facts=FACTS)

    seen = Texts(written(plan)).seen

    start = seen.index("rows") + 1
    assert seen[start : start + 11] == [
        "first",
        "count",
        "finished",
        "Text",
        "3 min 20 s",
        "3.0 GiB",
        "steps",
        "0",
        "5",
        "4 to 6",
        "2",
    ]
    assert [seen[seen.index(word) + 1] for word in ("versions", "machine", "most memory")] == [
        "torch 2.13.0, trl 1.16.0",
        "here, cpu, 1 process",
        "memory 3.0 GiB",
    ]


def came_of_it(page: str) -> list[str]:
    """Return the texts from the table of figures on."""
    seen = Texts(page).seen
    return seen[seen.index("What came of it") :]


def test_each_stage_says_what_became_of_it(plan: Plan) -> None:
    tell(folder_of(plan, "first"), facts=FACTS)
    tell(folder_of(plan, "second", finished=False))

    seen = came_of_it(written(plan, reused="first"))

    states = [seen[seen.index(stage) + 2] for stage in ("first", "second", "spare")]
    assert states == ["reused", "not finished", "not needed"]


def test_a_failure_is_told_at_the_top(plan: Plan) -> None:
    seen = Texts(written(plan, failure="stage 'first': <out> of memory")).seen

    assert seen[seen.index("The run ended early.") + 1] == "stage 'first': <out> of memory"


def test_the_last_figure_of_a_name_counts(plan: Plan) -> None:
    tell(folder_of(plan, "first"), Result("first", "steps", 0.0, 4.0), Result("first", "steps", 0.0, 5.0), facts=FACTS)

    seen = Texts(written(plan)).seen

    assert (seen.count("steps"), seen[seen.index("steps") + 2]) == (1, "5")


def test_settings_stand_beside_their_defaults(plan: Plan) -> None:
    seen = Texts(written(plan)).seen

    at = seen.index("count.steps")
    assert seen[at : at + 3] == ["count.steps", "5", "3"]


def test_samples_stand_side_by_side_and_are_text(plan: Plan) -> None:
    rows = [
        Sample("first", {"prompt": "<script>alert(1)</script>", "before": "so so", "reward": 0.51234}),
        Sample("first", {"prompt": "why?", "after": "because"}),
    ]
    tell(folder_of(plan, "first"), *rows, facts=FACTS)

    page = written(plan)

    seen = Texts(page).seen
    start = seen.index("<script>alert(1)</script>")
    assert seen[start : start + 3] == ["<script>alert(1)</script>", "before", "so so"]
    assert "reward 0.5123" in seen
    assert seen[seen.index("why?") :][:3] == ["why?", "after", "because"]
    assert page.count("<script") == 1


def test_more_samples_than_a_page_bears_are_counted(plan: Plan) -> None:
    tell(folder_of(plan, "first"), *(Sample("first", {"n": float(n)}) for n in range(MOST_SAMPLES + 7)), facts=FACTS)

    assert "7 more samples in the stage's events.jsonl" in Texts(written(plan)).seen


def test_warnings_are_shown_with_their_remedy(plan: Plan) -> None:
    tell(folder_of(plan, "first"), Warned("first", "3 rows are <long>", "cut them"), facts=FACTS)

    assert Texts(written(plan)).seen.count("3 rows are <long>; cut them") == 2


def test_a_report_needs_nothing_from_elsewhere(plan: Plan) -> None:
    tell(folder_of(plan, "first"), *metrics(50), Sample("first", {"see": "https://example.org"}), facts=FACTS)

    page = written(plan)

    folder = folder_of(plan, "first").name
    links = [link for link in Texts(page).links if not link.startswith("#")]
    assert links == [f"../../stages/{folder}"]
    assert "url(" not in page
    assert "@import" not in page


def test_a_report_of_many_metrics_and_long_texts_stays_below_one_and_a_half_megabytes(plan: Plan) -> None:
    values = {f"metric{n}": 0.0 for n in range(60)}
    many = [
        Metrics("first", n, 2000, {key: math.sin(n * (i + 1)) for i, key in enumerate(values)}) for n in range(2000)
    ]
    samples = [Sample("first", dict.fromkeys(("prompt", "a", "b", "c"), "x" * 20000)) for _ in range(100)]
    tell(folder_of(plan, "first"), *many, *samples, facts=FACTS)

    assert len(written(plan).encode()) < 1_500_000


def test_every_table_row_has_the_cells_of_its_head(plan: Plan) -> None:
    tell(folder_of(plan, "first"), Result("first", "steps", 0.0, 5.0), facts=FACTS)

    page = written(plan)

    table = page[page.index("What came of it") :]
    rows = re.findall(r"<tr>.*?</tr>", table[: table.index("</table>")], re.DOTALL)
    assert [len(re.findall(r"<t[hd]", row)) for row in rows] == [12, 12, 12]


def metrics(count: int) -> list[Metrics]:
    return [Metrics("first", n, count, {"loss": 1 / (n + 1), "objective/kl": float(n)}) for n in range(count)]


def test_a_report_is_written_after_each_stage(plan: Plan) -> None:
    tell(folder_of(plan, "first"), facts=FACTS)
    record = RunRecord(plan, Path("runs"))

    record(StageFinished("first", "count", "Text", str(folder_of(plan, "first")), 1.0))

    assert "finished" in Texts((record.folder / "report.html").read_text("utf-8")).seen


def test_a_report_is_written_when_a_run_breaks(plan: Plan) -> None:
    record = RunRecord(plan, Path("runs"))

    with pytest.raises(ValueError), record:
        raise ValueError("the sky is falling")

    assert "ValueError('the sky is falling')" in Texts((record.folder / "report.html").read_text("utf-8")).seen


def test_a_run_that_cannot_be_written_to_hides_no_failure(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    record = RunRecord(plan, Path("runs"))
    shutil.rmtree(record.folder)

    with pytest.raises(ValueError), record:
        raise ValueError("the sky is falling")

    assert caplog.messages == [f"{record.folder} cannot be written (No such file or directory)"]


def test_other_seeds_of_the_same_run_are_counted_in(plan: Plan) -> None:
    runs = []
    for seed, after in ((1, 5.0), (2, 6.0), (3, 4.0)):
        same = make_plan("light.toml", until="second", plugins=[PLUGIN], seed=seed)
        told = Result("first", "steps", 2.0, after, None, 100, (after - 0.1, after + 0.1), (2.9, 3.1), "higher")
        tell(folder_of(same, "first"), told, facts=FACTS)
        with RunRecord(same, Path("runs")) as record:
            record(StageFinished("first", "count", "Text", str(folder_of(same, "first")), 1.0, results=(told,)))
        runs.append(open_run(record.folder))
    other = make_plan("light.toml", until="second", plugins=[PLUGIN], seed=4, set={"first.count.steps": 4})
    with RunRecord(other, Path("runs")):
        pass

    found = verdict_on(runs[0])

    assert {one.seed for one in runs[0].other_seeds} == {2, 3}
    # spread of the seeds 1, t with 2 degrees of freedom and a little more
    assert re.fullmatch(r"Steps: .*2 -> 5 \(\+3.0 ± 4.[0-9], 100 rows, 3 seeds, .*\)\. No alarm\.", found.lead)
    assert found.seeds == 3


def test_a_report_imports_nothing_heavy() -> None:
    script = "import sys, jinja2, alignkit.show.report; print({'torch', 'transformers', 'trl'} & {*sys.modules})"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"


def test_a_chart_that_breaks_costs_no_run(plan: Plan, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("alignkit.run.keeping.write_report", lambda run: 1 / 0)

    with RunRecord(plan, Path("runs")) as record:
        pass

    assert json.loads((record.folder / "run.json").read_text())["state"] == "finished"
    assert "ZeroDivisionError" in caplog.messages[0]


def test_what_is_in_the_sources_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "a <b>?", "completion": " yes", "label": True} for _ in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.toml").write_text(
        '[sources]\nbase = { policy = "builtin:tiny" }\nmine = { ratings = "rows.jsonl" }\n'
        '[stage.judge]\nmethod = "kto"\n'
    )
    made = make_plan("r.toml", runs="runs")
    fetch([made.sources["mine"]], Path("runs"), offline=True)

    text = written(made)

    assert "<h3>mine: read as plain ratings (prompt-completion-label)</h3>" in text
    assert "<tr><th>labels<td>true 3</tr>" in text
    assert "every label is true; give rows of both labels" in text
