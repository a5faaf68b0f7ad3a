"""A recipe that says which figures are expected of it: they are checked, and mistakes are told where they stand."""

import json
from pathlib import Path

import pytest
from light_recipes import Alignkit, command_line, light_recipe

from alignkit.recipe.packaged import packaged_recipes
from alignkit.store.runs import open_run

EXPECT = """
[[expect]]
figure = "first/steps"
at_least = 3
at_most = 3
paper = 3.5
source = "Table 2"
differs = "everything"
[[expect]]
figure = "first/steps"
minus = "first/steps"
at_most = 0
[smoke]
set.first.count.steps = 2
[[smoke.expect]]
figure = "first/steps"
at_most = 2
"""
RECIPE = light_recipe(top='result = ["first", "second"]') + EXPECT


@pytest.fixture
def alignkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alignkit:
    return command_line(RECIPE, tmp_path, monkeypatch)


def write(recipe: str) -> None:
    Path("light.toml").write_text(recipe)


def test_figures_where_they_are_expected_are_told_and_kept(alignkit: Alignkit) -> None:
    done = alignkit("reproduce", "light.toml", "-p", "methods.py", "--inline")

    assert done.exit_code == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[:3] == [
        "figure expected measured 95 % holds paper",
        "first/steps 3 to 3 3 yes 3.5",
        "first/steps minus first/steps at most 0 0 yes",
    ]
    assert lines[-1] == "reproduced: 2 figures where expected"
    kept = open_run("runs/light")
    assert (kept.expected["edition"], kept.expected["holds"]) == ("full", True)
    page = kept.report.read_text()
    assert "2 of 2 figures are where they were expected." in page
    assert 'aria-label="first/steps: expected 3 to 3"' in page
    listed = alignkit("runs")
    assert "as expected: 2 of 2" in listed.stdout


def test_a_figure_outside_ends_with_1(alignkit: Alignkit) -> None:
    write(RECIPE.replace("at_least = 3\nat_most = 3", "at_least = 4"))

    done = alignkit("reproduce", "light.toml", "-p", "methods.py", "--inline", "--json")

    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "error: light is not reproduced: first/steps is 3, not at least 4"
    told = json.loads(done.stdout[done.stdout.index("{") :])
    assert (told["holds"], [one["holds"] for one in told["figures"]]) == (False, [False, True])
    assert (
        told["figures"][0] | {"measured": 3.0, "at_least": 4.0, "paper": 3.5, "source": "Table 2"}
        == (told["figures"][0])
    )
    assert Path(told["report"]).is_file()


def test_a_figure_that_was_not_told_is_outside(alignkit: Alignkit) -> None:
    write(RECIPE.replace('figure = "first/steps"', 'figure = "first/stops"', 1))

    done = alignkit("reproduce", "light.toml", "-p", "methods.py", "--inline")

    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "error: light is not reproduced: first/stops was not measured"


def test_the_small_edition_has_changes_and_expectations_of_its_own(alignkit: Alignkit) -> None:
    done = alignkit("reproduce", "light.toml", "-p", "methods.py", "--inline", "--smoke")

    assert done.exit_code == 0, done.stderr
    kept = open_run("runs/light-smoke")
    assert [one["measured"] for one in kept.expected["figures"]] == [2.0]
    assert kept.expected["edition"] == "small"


def test_what_is_expected_changes_no_fingerprint(alignkit: Alignkit) -> None:
    plan = json.loads(alignkit("plan", "light.toml", "-p", "methods.py", "--json").stdout)
    write(light_recipe(top='result = ["first", "second"]'))

    again = json.loads(alignkit("plan", "light.toml", "-p", "methods.py", "--json").stdout)

    assert [one["fingerprint"] for one in plan["stages"].values()] == [
        one["fingerprint"] for one in again["stages"].values()
    ]


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("at_least = 3\nat_most = 3\n", "", "light.toml:10: expect: nothing is expected: write at_least, at_most, or "
         "both"),
        ("at_least = 3\n", "at_least = 4\n", "light.toml:10: expect: at_least 4 is above at_most 3"),
        ("paper = 3.5", "papr = 3.5", "light.toml:14: expect.papr: unknown setting; did you mean 'paper'?"),
        ("minus = \"first/steps\"", "minus = 3", "light.toml:19: expect.minus: must be text, and is 3"),
        ("figure = \"first/steps\"\nminus", "figure = \"frist/steps\"\nminus",
         "light.toml:18: expect.figure 'frist/steps': there is no stage 'frist'; did you mean 'first'?"),
        ("set.first.count.steps = 2", "set.frist.count.steps = 2",
         "light.toml:22: the recipe has no stage or source 'frist'; did you mean 'first'?"),
        ("set.first.count.steps = 2", "set.first.count.stps = 2",
         "light.toml:22: stage 'first': count.stps: unknown setting; did you mean 'steps'?"),
        ("[smoke]", "[smoke]\nseeds = 2",
         "light.toml:22: smoke.seeds: this recipe has no [compare] whose seeds there could be fewer of; leave it out, "
         "or add [compare]"),
    ],
)  # fmt: skip
def test_mistakes_are_told_where_they_stand(alignkit: Alignkit, was: str, now: str, told: str) -> None:
    write(RECIPE.replace(was, now, 1))

    done = alignkit(
        "reproduce", "light.toml", "-p", "methods.py", "--smoke" if "smoke" in was or "set" in was else "-q"
    )

    assert (done.exit_code, done.stderr) == (2, f"error: {told}\n")


@pytest.mark.parametrize(
    ("words", "recipe", "told"),
    [
        (["light.toml"], light_recipe(), "light.toml: the recipe expects no figure; add [[expect]] with a figure"),
        (["light.toml", "--smoke"], light_recipe(),
         "light.toml: the recipe has no small edition; add [smoke], or leave out --smoke"),
        (["nowhere.toml"], RECIPE, "nowhere.toml: there is no such recipe; the packaged recipes are "),
        (["light", "--smoke"], RECIPE,
         "--smoke: 'light' is a run that is kept, not a recipe; leave it out, or name a recipe"),
        (["label-nois"], RECIPE, "label-nois: no run is called so; did you mean 'label-noise'?"),
        (["label-nois", "--smoke"], RECIPE,
         "--smoke: 'label-nois' is a run that is kept, not a recipe; did you mean 'label-noise'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_reproduced_is_refused(alignkit: Alignkit, words: list[str], recipe: str, told: str) -> None:
    write(recipe)

    done = alignkit("reproduce", *words)

    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {told}")


def test_a_recipe_with_a_mistake_in_what_it_expects_is_not_planned(alignkit: Alignkit) -> None:
    write(RECIPE.replace("[[smoke.expect]]", "[[smoke.expects]]"))

    done = alignkit("plan", "light.toml", "-p", "methods.py")

    assert (done.exit_code, done.stderr) == (
        2,
        "error: light.toml:23: smoke.expects: unknown setting; did you mean 'expect'?\n",
    )


def test_every_packaged_recipe_of_a_paper_expects_figures() -> None:
    from alignkit.recipe.recipe import read_recipe

    papers = [path for path in packaged_recipes().values() if path.parent.name == "papers"]

    assert [path.name for path in papers if not read_recipe(path).checks.expect] == []
