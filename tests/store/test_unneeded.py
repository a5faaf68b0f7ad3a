"""What no kept run needs goes; nothing that one needs, ever."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from light_recipes import PLUGIN, desk_with, dotted, light_recipe

from alignkit import StageError, Text, run_recipe
from alignkit.data.records import Part
from alignkit.plan.plan import Plan, PlannedStage
from alignkit.plan.planner import make_plan
from alignkit.run.keeping import RunRecord
from alignkit.run.states import states_of
from alignkit.store import checkpoints, rundir
from alignkit.store.durable import write_json
from alignkit.store.locks import hold
from alignkit.store.results import finish
from alignkit.store.runs import KeptRun, open_run, remove_run, this_process
from alignkit.store.unneeded import remove, unneeded

RECIPE = light_recipe()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a recipe in it."""
    return desk_with(RECIPE, tmp_path, monkeypatch)


def planned(**changes: object) -> Plan:
    return make_plan("light.toml", set=dotted(changes), plugins=[PLUGIN])


def run(**changes: object) -> KeptRun:
    return open_run(run_recipe("light.toml", set=dotted(changes), inline=True, plugins=[PLUGIN]).folder)


def collected(runs: Path = Path("runs")) -> set[str]:
    """Remove what is not needed, and return its names."""
    return {one.path.name for one in remove(unneeded(runs), runs)}


def test_what_a_kept_run_names_stays_and_the_rest_goes() -> None:
    first, second = run(), run(second__shout__mark="?")
    gone = first.stages[1].folder
    assert collected() == set()

    remove_run(first)

    assert gone
    assert collected() == {gone.name}
    assert [stage.state for stage in KeptRun(second.folder).stages] == ["reused", "finished"]


def test_what_a_stopped_run_would_go_on_with_stays_until_that_run_is_removed() -> None:
    failing: dict[str, Any] = {"first__count__fail": "bug", "first__count__at": 3}
    with pytest.raises(StageError):
        run(**failing)
    kept = open_run("runs/light")

    before = states_of(planned(**failing), Path("runs"))[0]["first"]
    first_time = collected()
    after = states_of(planned(**failing), Path("runs"))[0]["first"]
    remove_run(kept)

    assert (before, first_time, after) == ("resumes at step 2", set(), "resumes at step 2")
    assert [name.partition("-")[0] + Path(name).suffix for name in collected()] == ["first.partial"]


def test_what_somebody_works_on_stays() -> None:
    kept = run()
    stage = kept.stages[0]
    remove_run(kept)

    with hold(rundir.partial_folder(kept.runs, stage.name, str(stage.fingerprint))):
        listed = {one.path.name for one in unneeded(Path("runs"))}
        gone = collected()

    assert listed == gone
    assert {name.partition("-")[0] for name in gone} == {"second"}
    assert {name.partition("-")[0] for name in collected()} == {"first"}


def test_the_base_that_a_kept_adapter_names_stays(here: Path) -> None:
    kept = run()
    base = here / "runs" / "stages" / "other-01234567"
    (base / "artifact").mkdir(parents=True)
    (base / "artifact" / "config.json").write_text("{}")
    adapter = kept.stages[1].folder
    assert adapter
    facts = {"base_model_name_or_path": str(base / "artifact")}
    (adapter / "artifact" / "adapter_config.json").write_text(json.dumps(facts))

    kept_back = collected()
    (adapter / "artifact" / "adapter_config.json").unlink()

    assert (kept_back, collected()) == (set(), {base.name})


def test_a_stage_that_a_recipe_takes_as_a_source_stays(here: Path) -> None:
    first = run()
    rows = next((here / "runs" / "stages").glob("first-*/artifact/data.jsonl"))
    (here / "next.toml").write_text(f'[sources.rows]\ntext = "{rows}"\n[stage.loud]\nmethod = "shout"\n')
    run_recipe("next.toml", inline=True, plugins=[PLUGIN])
    remove_run(first)

    assert {name.partition("-")[0] for name in collected()} == {"second"}


def test_sources_and_rows_in_the_cache_go_with_the_last_run_that_needs_them(here: Path) -> None:
    (here / "own.toml").write_text(
        '[sources.corpus]\ntext = "builtin:reviews"\nrows = 20\n[stage.loud]\nmethod = "shout"\n'
    )
    kept = open_run(run_recipe("own.toml", inline=True, plugins=[PLUGIN]).folder)
    (here / "runs" / "cache" / "rows-0123456789abcdef").mkdir()
    (here / "runs" / "cache" / "judge-paid.jsonl").write_text("{}")
    (source,) = (path.name for path in (here / "runs" / "sources").glob("[!.]*"))

    with_run = collected()
    (here / "runs" / "cache" / "rows-0123456789abcdef").mkdir()
    remove_run(kept)

    assert with_run == {"rows-0123456789abcdef"}
    assert source in collected()
    assert (here / "runs" / "cache" / "judge-paid.jsonl").is_file()


def test_the_cache_stays_while_something_runs() -> None:
    kept = run()
    Path("runs/cache/rows-0123456789abcdef").mkdir(parents=True)
    write_json(kept.folder / "run.json", {**kept.facts, "state": "running", "process": this_process()})

    assert collected() == set()


def test_what_is_needed_by_the_time_of_removal_stays() -> None:
    kept = run()
    shutil.move(kept.folder, "aside")
    found = unneeded(Path("runs"))
    shutil.move("aside", kept.folder)

    assert found
    assert list(remove(found, Path("runs"))) == []


def test_where_a_plan_cannot_be_read_nothing_is_removed() -> None:
    kept = run()
    (kept.folder / "plan.json").write_text("{")

    with pytest.raises(StageError) as raised:
        unneeded(Path("runs"))

    expected = "plan.json cannot be read, so it is not known what the run needs"
    remedy = f"put it back, or remove the run: alignkit runs rm {kept.id}"
    assert str(raised.value) == f"{kept.folder}: {expected}; {remedy}"


# Any graph of runs and stages

CHOICES = [{"first__count__steps": steps, "second__shout__mark": mark} for steps in (1, 2, 3) for mark in "!?"]
ENDINGS = ("finished", "failed", "died", "running")
LAID = st.fixed_dictionaries({"finished": st.booleans(), "partial": st.booleans(), "replaced": st.booleans()})
GRAPHS = st.fixed_dictionaries(
    {
        "runs": st.lists(st.tuples(st.sampled_from(range(6)), st.sampled_from(ENDINGS)), max_size=5),
        "laid": st.lists(LAID, min_size=9, max_size=9),
        "locked": st.sets(st.sampled_from(range(9))),
        "adapters": st.lists(st.tuples(st.sampled_from(range(9)), st.sampled_from(range(9))), max_size=3),
    }
)


@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_of_any_runs_all_that_they_need_stays_and_nothing_else(here: Path, examples: int) -> None:
    plans = [planned(**choice) for choice in CHOICES]

    @settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(graph=GRAPHS)
    def check(graph: dict[str, Any]) -> None:
        collect_and_look(here / "runs", plans, graph)

    check()


def collect_and_look(runs: Path, plans: list[Plan], graph: dict[str, Any]) -> None:
    """Lay out a graph, remove what is not needed, and look at what is left."""
    shutil.rmtree(runs, ignore_errors=True)
    stages = list({str(stage.fingerprint): stage for plan in plans for stage in plan.stages}.values())
    for stage, how in zip(stages, graph["laid"], strict=True):
        lay(runs, stage, how)
    for one, other in graph["adapters"]:
        lean(runs, stages[one], stages[other])
    for number, ending in graph["runs"]:
        keep(runs, plans[number], ending)
    kept = {number: states_of(plans[number], runs)[0] for number, _ in graph["runs"]}
    resumed = [
        partial
        for number, ending in graph["runs"]
        for stage in plans[number].stages
        if ending != "finished"
        and (partial := rundir.partial_folder(runs, stage.name, str(stage.fingerprint))).is_dir()
    ]
    leaned_on = {rundir.stage_folder(runs, stages[b].name, str(stages[b].fingerprint)) for _, b in graph["adapters"]}

    with ExitStack() as locks:
        for number in graph["locked"]:
            locks.enter_context(hold(rundir.partial_folder(runs, stages[number].name, str(stages[number].fingerprint))))
        gone = {one.path for one in remove(unneeded(runs), runs)}

    assert {number: states_of(plans[number], runs)[0] for number in kept} == kept
    assert all(partial.is_dir() for partial in resumed)
    named = {str(stage.fingerprint) for number, _ in graph["runs"] for stage in plans[number].stages}
    for number, stage in enumerate(stages):
        finished = rundir.stage_folder(runs, stage.name, str(stage.fingerprint))
        partial = rundir.partial_folder(runs, stage.name, str(stage.fingerprint))
        of_stage = {finished, partial, partial.with_suffix(".replaced")}
        if number in graph["locked"]:
            assert not of_stage & gone
        elif str(stage.fingerprint) not in named and finished not in leaned_on:
            assert not any(path.exists() for path in of_stage)


FACTS = {
    "inputs": {},
    "results": [],
    "made_from": {},
    "seconds": 1.0,
    "began": "",
    "ended": "",
    "peak_memory": {"memory": 2**30},
    "processes": 1,
    "device": "cpu",
    "host": "here",
    "versions": {},
}


def lay(runs: Path, stage: PlannedStage, how: dict[str, bool]) -> None:
    """Lay the folders of a stage as if it had run, been interrupted, or crashed while it was replaced."""
    partial = rundir.partial_folder(runs, stage.name, str(stage.fingerprint))
    if how["finished"]:
        file = partial / "artifact" / "data.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text('{"text": "one"}\n')
        part = Part(name=stage.name, paths=(file,))
        artifact = Text(name=stage.name, fingerprint="", path=file.parent, parts=(part,))
        finish(partial, artifact, {"fingerprint": stage.fingerprint, "method": stage.method.name, **FACTS})
    if how["partial"]:
        staged = checkpoints.staged_folder(partial / "checkpoints", 2)
        checkpoints.begin(staged)
        checkpoints.commit(staged, {})
    if how["replaced"]:
        partial.with_suffix(".replaced").mkdir(parents=True)


def lean(runs: Path, stage: PlannedStage, base: PlannedStage) -> None:
    """Make a finished stage's artifact an adapter of another one's."""
    one, other = (rundir.stage_folder(runs, s.name, str(s.fingerprint)) / "artifact" for s in (stage, base))
    if one.is_dir() and other.is_dir() and one != other:
        (other / "config.json").write_text("{}")
        (one / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(other)}))


def keep(runs: Path, plan: Plan, ending: str) -> None:
    """Keep a run of a plan that ended so."""
    record = RunRecord(plan, runs)
    if ending == "finished":
        with record:
            pass
    elif ending == "failed":
        with pytest.raises(StageError), record:
            raise StageError("it failed")
    elif ending == "died":
        facts = KeptRun(record.folder).facts
        write_json(record.folder / "run.json", {**facts, "process": {**facts["process"], "began": 0.0}})
    assert KeptRun(record.folder).state == ending
