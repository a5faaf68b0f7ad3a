"""`alignkit runs`: what is kept is listed, shown, compared and removed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from light_recipes import Alignkit, command_line, light_recipe

from alignkit.cli import main
from alignkit.store.runs import open_run

RECIPE = light_recipe(top='result = "second"', first="count.steps = 4", second='inputs.text = "first"')


@pytest.fixture
def alignkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alignkit:
    return command_line(RECIPE, tmp_path, monkeypatch)


def run(alignkit: Alignkit, *more: str, recipe: str = "light.toml") -> str:
    """Run the recipe, and return the id of the run."""
    alignkit("recipe", recipe, "-p", "methods.py", "--inline", *more)
    return open_run("runs/light").id


def test_where_no_run_is_kept_that_is_said(alignkit: Alignkit) -> None:
    assert alignkit("runs").stdout == "no run is kept in runs\n"


def test_runs_are_listed_the_last_one_last(alignkit: Alignkit) -> None:
    first = run(alignkit)
    second = run(alignkit, "--set", "first.count.fail=bug")

    lines = alignkit("runs").stdout.splitlines()

    assert lines[0].split() == ["recipe", "run", "began", "state", "size", "methods", "figures"]
    assert [line.split()[:2] for line in lines[1:]] == [first.split("/"), second.split("/")]
    assert lines[1].endswith("finished  0 MiB  count shout  first: steps 4")
    assert lines[2].endswith("failed    0 MiB  count shout")


def test_the_list_in_json_says_what_was_run_and_how_it_ended(alignkit: Alignkit) -> None:
    identity = run(alignkit)

    (found,) = json.loads(alignkit("runs", "--json").stdout)

    assert (found["id"], found["recipe"], found["state"], found["status"]) == (identity, "light", "finished", 0)
    assert found["arguments"] == ["recipe", "light.toml", "-p", "methods.py", "--inline"]
    assert found["methods"] == {"first": "count", "second": "shout"}
    assert [result["after"] for result in found["results"]] == [4.0]


def test_listing_runs_imports_nothing_heavy(alignkit: Alignkit) -> None:
    run(alignkit)
    script = (
        "import sys\nfrom alignkit.cli import main\nmain(['runs'], standalone_mode=False)\n"
        "print({'torch', 'transformers', 'pandas', 'jinja2', 'numpy', 'alignkit.plan.plan'} & {*sys.modules})"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "set()"


def test_a_run_is_shown_with_its_course_its_stages_and_what_was_changed(alignkit: Alignkit) -> None:
    identity = run(alignkit, "--set", "second.shout.mark=?")

    words = [line.split() for line in alignkit("runs", "show", "light").stdout.splitlines()]
    told = json.loads(alignkit("runs", "show", "light", "--json").stdout)

    assert ["run", identity] in words
    assert ["state", "finished"] in words
    assert ["set", "stage.second.shout.mark", "=", "?"] in words
    assert ["first", "count", "finished"] in [line[:3] for line in words]
    assert ["first", "count.steps", "4", "3"] in words
    assert ["second", "shout.mark", '"?"', '"!"'] in words
    assert [stage["name"] for stage in told["stages"]] == ["first", "second"]


def test_what_two_runs_have_otherwise_is_shown_side_by_side(alignkit: Alignkit) -> None:
    first = run(alignkit)
    second = run(alignkit, "--set", "first.count.steps=6", "--seed", "2")

    lines = [line.split() for line in alignkit("runs", "diff", first, second).stdout.splitlines()]
    told = json.loads(alignkit("runs", "diff", first, second, "--json").stdout)

    assert lines[:2] == [["A", first], ["B", second]]
    assert ["seed", "1", "2"] in lines
    assert ["first", "steps", "4", "6"] in lines
    assert ["first", "steps", "4", "6", "+2"] in lines
    assert told["figures"] == [{"stage": "first", "name": "steps", "a": 4.0, "b": 6.0, "difference": 2.0}]


def test_two_runs_on_other_data_show_rows_and_fingerprints(alignkit: Alignkit) -> None:
    sources = '[sources.corpus]\ntext = "rows.jsonl"\n'
    Path("light.toml").write_text(f'{sources}[stage.second]\nmethod = "shout"\n')
    Path("rows.jsonl").write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(40)))
    first = run(alignkit)
    Path("rows.jsonl").write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(30)))
    second = run(alignkit)

    (source,) = json.loads(alignkit("runs", "diff", first, second, "--json").stdout)["sources"]

    counts = [sum(map(int, source[side].split(" + "))) for side in ("rows_a", "rows_b")]
    assert (source["source"], source["same"], counts) == ("corpus", False, [40, 30])
    assert len(source["a"]) == len(source["b"]) == 8
    assert source["a"] != source["b"]


def test_what_only_one_of_two_methods_has_is_told_where_it_is_not_its_default(alignkit: Alignkit) -> None:
    first = run(alignkit, "--set", "second.shout.mark=?")
    Path("light.toml").write_text(RECIPE.replace('inputs.text = "first"\n', "").replace('"shout"', '"count"'))
    second = run(alignkit, "--set", 'result=["first", "second"]')

    found = json.loads(alignkit("runs", "diff", first, second, "--json").stdout)

    assert [tuple(one.values()) for one in found["settings"]] == [("second", "mark", '"?"', "")]
    assert [tuple(one.values()) for one in found["stages"]] == [
        ("first", "count", "count", True),
        ("second", "shout", "count", False),
    ]


def test_a_run_is_named_by_the_beginning_of_its_id(alignkit: Alignkit) -> None:
    identity = run(alignkit)

    shown = {
        alignkit("runs", "show", name).stdout.splitlines()[0].split()[1]
        for name in (identity, identity[:-2], identity.partition("/")[2], "light", "light/latest", f"runs/{identity}")
    }

    assert shown == {identity}


def test_a_name_of_several_runs_or_of_none_is_refused(alignkit: Alignkit) -> None:
    run(alignkit)
    last = run(alignkit, "--set", "first.count.steps=5")

    several, none = (alignkit("runs", "show", name) for name in (last[:8], "light/1999"))

    assert (several.exit_code, several.stderr) == (2, f"error: {last[:8]}: 2 runs begin so; write more of it: {last}\n")
    assert (none.exit_code, none.stderr) == (
        2,
        "error: light/1999: no run is called so; `alignkit runs` lists those in runs\n",
    )


def test_removing_the_latest_run_moves_latest(alignkit: Alignkit) -> None:
    first = run(alignkit)
    second = run(alignkit, "--set", "first.count.steps=5")

    removed = alignkit("runs", "rm", "light")

    assert removed.stdout == f"removed {second}\n"
    assert open_run("runs/light").id == first
    assert Path("runs/light/latest").readlink() == Path(first.partition("/")[2])
    assert second not in Path("runs/index.html").read_text("utf-8")
    assert list(Path("runs/stages").glob("first-*"))


def test_removing_the_last_run_removes_its_recipes_folder(alignkit: Alignkit) -> None:
    run(alignkit)

    alignkit("runs", "rm", "light")

    assert not Path("runs/light").exists()
    assert alignkit("runs").stdout == "no run is kept in runs\n"


def test_a_run_that_goes_on_is_not_removed(alignkit: Alignkit) -> None:
    identity = run(alignkit)
    kept = open_run("runs/light")
    process = {"pid": 1, "host": "elsewhere", "system": "another", "began": 0.0}
    (kept.folder / "run.json").write_text(json.dumps({**kept.facts, "state": "running", "process": process}))

    result = alignkit("runs", "rm", "light")

    expected = f"error: {identity}: process 1 on elsewhere runs it; wait for it, or stop it\n"
    assert (result.exit_code, result.stderr) == (75, expected)
    assert kept.folder.is_dir()


def test_what_nobody_needs_is_removed_when_that_is_confirmed(alignkit: Alignkit) -> None:
    run(alignkit)
    alignkit("runs", "rm", "light")

    dry, asked, done = (alignkit("runs", "gc", *words) for words in (["--dry-run"], [], ["--yes"]))

    assert [line.partition("-")[0] for line in dry.stdout.splitlines()[1:]] == [
        "runs/stages/first",
        "runs/stages/second",
    ]
    assert dry.stderr == ""
    assert (asked.exit_code, "remove 0 MiB? [y/N]" in asked.stderr) == (1, True)
    assert done.stderr == "removed 2 of 2 folders, 0 MiB\n"
    assert alignkit("runs", "gc").stdout == "nothing: kept runs need all that is there\n"


def test_the_index_links_the_reports_of_all_runs(alignkit: Alignkit) -> None:
    first = run(alignkit)
    second = run(alignkit, "--set", "first.count.fail=bug")

    page = Path("runs/index.html").read_text("utf-8")

    assert page.index(f'href="{second}/report.html"') < page.index(f'href="{first}/report.html"')
    assert "<td>finished<td>count shout<td>first: steps 4</tr>" in page
    assert "prefers-color-scheme: dark" in page
    assert "http" not in page
    assert all((Path("runs") / identity / "report.html").is_file() for identity in (first, second))


def test_runs_are_completed(alignkit: Alignkit) -> None:
    identity = run(alignkit)

    def completed(*words: str) -> list[str]:
        found = ShellComplete(main, {}, "alignkit", "_ALIGNKIT_COMPLETE").get_completions(list(words[:-1]), words[-1])
        return [str(item.value) for item in found]

    assert completed("runs", "show", "") == ["light", identity]
    assert completed("runs", "diff", "light", identity[:8]) == [identity]
    assert completed("runs", "rm", "x") == []
    assert completed("runs", "show", "--runs", "elsewhere", "l") == []
    assert {"ls", "show", "diff", "rm", "gc"} <= {*completed("runs", "")}


REFUSES = """
from alignkit import RecipeError, Settings, Stage, Text, hookimpl, method

@method("odd")
def odd(settings: Settings, stage: Stage) -> Text:
    '''Refuse.'''
    raise RecipeError("the setting does not fit", "odd.x", "change it")

@hookimpl
def alignkit_methods():
    return [odd]
"""


@pytest.mark.parametrize("words", [[], ["--inline"]])
def test_a_refusal_is_told_once_and_is_not_gone_on_with(alignkit: Alignkit, words: list[str]) -> None:
    Path("refuses.py").write_text(REFUSES)
    Path("refuses.toml").write_text('[stage.odd]\nmethod = "odd"\n')

    result = alignkit("recipe", "refuses.toml", "-p", "refuses.py", *words)

    assert result.exit_code == 2
    assert result.stderr.count("the setting does not fit") == 1
    assert "go on with" not in result.stderr


def test_a_run_of_an_earlier_version_can_be_removed(alignkit: Alignkit) -> None:
    run(alignkit)
    kept = open_run("runs/light")
    for name in ("recipe.toml", "plan.json", "report.html"):
        shutil.move(kept.folder / name, Path("runs/light") / name)
    shutil.rmtree(kept.folder)

    result = alignkit("runs", "rm", "light/earlier")

    assert (result.stdout, Path("runs/light").exists()) == ("removed light/earlier\n", False)


SMALL = """
name = "light"
[sources]
base = { policy = "builtin:tiny" }
demos = { demonstrations = "builtin:reviews", rows = 40 }
pairs = { preferences = "builtin:reviews", rows = 40 }
prompts = { prompts = "builtin:reviews", rows = 40 }
[stage.finetune]
method = "sft"
sft.epochs = 1
[stage.reward]
method = "reward"
reward.epochs = 1
[stage.align]
method = "ppo"
inputs.policy = "finetune"
ppo.updates = 1
ppo.batch = 8
ppo.measured = 8
"""


@pytest.mark.slow
def test_ppo_and_dpo_of_one_recipe_are_compared_by_settings_data_and_figures(
    alignkit: Alignkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "dpo")
    Path("light.toml").write_text(SMALL)
    ppo, dpo = run(alignkit), run(alignkit, "--set", "align.method=dpo")

    found = json.loads(alignkit("runs", "diff", ppo, dpo, "--json").stdout)

    stages = {one["stage"]: (one["a"], one["b"], one["same"]) for one in found["stages"]}
    settings = {one["setting"]: (one["a"], one["b"]) for one in found["settings"]}
    sources = {one["source"]: (one["rows_a"], one["same"]) for one in found["sources"]}
    figures = {(one["stage"], one["name"]): (one["a"], one["b"]) for one in found["figures"]}
    assert stages == {
        "finetune": ("sft", "sft", True),
        "reward": ("reward", "", False),
        "align": ("ppo", "dpo", False),
    }
    assert settings["learning_rate"] == ("1e-5", "1e-6")
    assert settings["updates"] == ("1", "")
    assert sources["demos"] == ("40 + 40", True)
    assert figures["finetune", "perplexity"][0] == figures["finetune", "perplexity"][1]
    assert figures["align", "kl"][1] is None
    assert figures["align", "accuracy"][0] is None
