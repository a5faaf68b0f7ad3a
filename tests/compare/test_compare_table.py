"""`[compare]` and `[[expect]]` of a recipe: what a command leaves open, what is refused, figures of a comparison."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from click.testing import CliRunner, Result

from alignkit.cli import main
from alignkit.compare.planning import ComparisonPlan, plan_comparison
from alignkit.compare.variants import VariantRequest
from alignkit.plan.planner import make_plan
from alignkit.store.runs import open_run
from tests.compare.test_compare import PLUGIN, RECIPE
from tests.planning import write_model, write_rows

COMPARE = """
[compare]
methods = ["shift"]
vary.align.shift.far = [0.1, 0.2]
seeds = 2
[compare.variants]
near = { lift.far = 0.01, lift.note = "1.0" }
other = { method = "shift", shift.far = 0.5 }
both = { inputs.rewards = ["proxy", "truth"] }
"""
TABLED = RECIPE + COMPARE


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a recipe's plugin and its sources."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    monkeypatch.delenv("COLUMNS", raising=False)
    write_model(tmp_path / "model")
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"how was day {number}?"} for number in range(60)])
    (tmp_path / "fakes.py").write_text(PLUGIN)
    return tmp_path


def planned(recipe: str = TABLED, **asked: Any) -> ComparisonPlan:
    Path("small.toml").write_text(recipe)
    return plan_comparison("small.toml", VariantRequest(**asked), plugins=["fakes.py"])


def labels(made: ComparisonPlan) -> list[str]:
    return [contender.variant.label for contender in made.contenders]


def command(*words: str, recipe: str = TABLED) -> Result:
    Path("small.toml").write_text(recipe)
    return CliRunner().invoke(main, [words[0], "small.toml", "-p", "fakes.py", *words[1:]], prog_name="alignkit")


def test_what_the_recipe_says_is_compared_where_the_command_says_nothing(desk: Path) -> None:
    made = planned()

    assert labels(made) == ["shift far=0.1", "shift far=0.2", "near", "other", "both"]
    assert len(made.seeds) == 2
    settings = made.plan.stage("align-near-s1").settings.model_dump()
    assert (settings["far"], settings["note"]) == (0.01, "1.0")
    assert made.plan.stage("align-other-s2").method.name == "shift"
    assert made.plan.stage("align-both-s1").inputs["rewards"] == ("proxy", "truth")


def test_options_of_the_command_go_before_the_table(desk: Path) -> None:
    assert (labels(planned(seeds=1)), len(planned(seeds=1).seeds)) == (labels(planned()), 1)
    assert (labels(planned(methods=["lift", "shift"])), len(planned(methods=["lift"]).seeds)) == (["lift", "shift"], 2)
    assert labels(planned(vary={"align.lift.far": [0.2]})) == ["lift far=0.2"]


def test_the_table_says_which_rewards_are_measured_beside_those_that_decide(desk: Path) -> None:
    def measured(recipe: str) -> tuple[str, ...]:
        made = planned(recipe)
        return made.plan.stage(made.scores).inputs["rewards"]

    assert measured(TABLED) == ("truth", "proxy")
    assert measured(TABLED.replace("seeds = 2", 'seeds = 2\nrewards = ["truth"]')) == ("truth",)


def test_a_reward_without_weight_is_not_one_that_is_learnt_from(desk: Path) -> None:
    rides = RECIPE.replace('proxy = { reward = "function:brief" }', 'proxy = { reward = "function:brief", weight = 0 }')

    assert planned(RECIPE, methods=["lift", "shift"]).trained == {"proxy"}
    assert planned(rides, methods=["lift", "shift"]).trained == frozenset()


def test_the_recipes_own_variant_may_have_a_name(desk: Path) -> None:
    made = planned(f"{RECIPE}[compare.variants]\nown = {{}}\nnear = {{ lift.far = 0.01 }}\n")

    assert [contender.stages for contender in made.contenders] == [("align",), ("align-near-s1",)]


def test_the_table_changes_no_fingerprint_and_a_run_takes_no_notice_of_it(desk: Path) -> None:
    Path("small.toml").write_text(RECIPE)
    before = [(stage.name, stage.fingerprint) for stage in make_plan("small.toml", plugins=["fakes.py"]).stages]
    Path("small.toml").write_text(TABLED + '[[expect]]\nfigure = "near/reward"\nat_least = 0.5\n')

    after = [(stage.name, stage.fingerprint) for stage in make_plan("small.toml", plugins=["fakes.py"]).stages]

    assert after == before


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("near = { lift.fra = 0.01 }",
         ["small.toml:25: stage 'align': lift.fra: unknown setting; did you mean 'far'?"]),
        ('near = { method = "shfit" }',
         ["small.toml:25: stage 'align': no plugin offers a method 'shfit'; did you mean 'shift'?"]),
        ("near = { lift.far = 0.1 }\nnext = { lift.far = 0.1 }",
         ["small.toml:26: stage 'align': the variants 'near' and 'next' are the same; leave one out, or vary a "
          "setting that the method has"]),
        ("start = { lift.far = 0.1 }",
         ["small.toml:25: compare.variants: no variant can be called 'start'; its name must match "
          "[a-z][a-z0-9-]{0,40}"]),
        ("near = { seed = 3 }",
         ["small.toml:25: compare.variants.near: all variants run under the same seeds; write seeds = N under "
          "[compare]"]),
    ],
)  # fmt: skip
def test_mistakes_of_variants_are_told_where_they_stand(desk: Path, table: str, told: list[str]) -> None:
    result = command("compare", recipe=f"{RECIPE}[compare.variants]\n{table}\n")

    assert (result.exit_code, result.stderr.splitlines()) == (2, [f"error: {line}" for line in told])


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('stage = "aling"\nmethods = ["lift"]', "small.toml:25: there is no stage 'aling'; did you mean 'align'?"),
        ('methods = ["lift", "lift"]', "small.toml:25: 'lift' is named twice; name it once"),
        ('methods = ["lift", "shfit"]',
         "small.toml:25: stage 'align': no plugin offers a method 'shfit'; did you mean 'shift'?"),
        ("vary.align.lift.fra = [1]", "small.toml:25: stage 'align': lift.fra: unknown setting; did you mean 'far'?"),
        ("vary.align.lift.far = 1",
         "small.toml:25: compare.vary.align.lift.far: must be a list of values; write vary.KEY = [A, B]"),
        ("vary.start.tune.far = [1]",
         "small.toml:25: only stage 'align' varies here; --set changes another one, for all variants alike"),
        ("seeds = 0", "small.toml:25: compare.seeds: must be greater than 0, and is 0"),
        ("seed = 2", "small.toml:25: compare.seed: unknown setting; did you mean 'seeds'?"),
        ('methods = ["shift"]\nvariants.shift = { lift.far = 1 }',
         "small.toml:26: two variants are called 'shift'; give one of them another name"),
    ],
)  # fmt: skip
def test_mistakes_of_the_table_are_told_where_they_stand(desk: Path, table: str, told: str) -> None:
    stage = 'stage = "align"\n' if "stage" not in table.partition("=")[0] and "vary.start" in table else ""
    result = command("compare", recipe=f"{RECIPE}[compare]\n{table}\n{stage}")

    assert (result.exit_code, result.stderr) == (2, f"error: {told}\n")


EXPECTING = (
    TABLED
    + """
[[expect]]
figure = "near/reward"
minus = "other/reward"
at_least = -9
[[expect]]
figure = "shift far=0.1/rewards/truth"
at_most = 99
"""
)


@pytest.mark.parametrize(
    ("figure", "told"),
    [
        ("naer/reward", "there is no variant 'naer'; did you mean 'near'?"),
        ("near/rewrad", "a variant has no figure 'rewrad'; did you mean 'reward'?"),
        ("n*/rewrad", "a variant has no figure 'rewrad'; did you mean 'reward'?"),
        (
            "x*/reward",
            "there is no variant 'x*'; the variants are start, shift far=0.1, shift far=0.2, near, other, both",
        ),
        ("measured/rewrad start", "evaluate reports no such result; did you mean 'reward start'?"),
    ],
)
def test_a_figure_that_no_variant_has_is_refused(desk: Path, figure: str, told: str) -> None:
    result = command("reproduce", recipe=EXPECTING.replace("near/reward", figure))

    assert (result.exit_code, result.stderr.partition(": ")[2].partition(": ")[2]) == (
        2, f"expect.figure {figure!r}: {told}\n",
    )  # fmt: skip


@pytest.mark.slow
def test_the_comparison_of_a_recipe_is_checked(tiny_policy: Any, desk: Path) -> None:
    import shutil

    shutil.rmtree("model")
    shutil.copytree(tiny_policy.path, "model")
    small = '[smoke]\nset.measured.evaluate.prompts = 8\nseeds = 1\nvariants = ["near"]\n'
    mean = '[[expect]]\nfigure = "*/reward"\nat_least = -9\n[[expect]]\nfigure = "near/rewards/tr*"\nat_least = -9\n'
    recipe = EXPECTING + mean + small + '[[smoke.expect]]\nfigure = "near/kl"\nat_most = 50\nat_least = -50\n'

    done, again = command("reproduce", recipe=recipe), command("reproduce", "--smoke", "-q", recipe=recipe)

    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "reproduced: 4 figures where expected"
    assert again.exit_code == 0, again.output
    whole = open_run("runs/small-compare")
    rewards = [line["reward"] for line in whole.comparison["variants"]]
    near = next(line for line in whole.comparison["variants"] if line["name"] == "near")
    found = [one["measured"] for one in whole.expected["figures"][2:]]
    assert found == pytest.approx([fmean(rewards), near["rewards"]["truth"]])
    kept = open_run("runs/small-smoke-compare")
    assert [line["name"] for line in kept.comparison["variants"]] == ["near"]
    assert [one["holds"] for one in kept.expected["figures"]] == [True]
    assert "1 of 1 figures are where they were expected, in the small edition" in kept.report.read_text()
