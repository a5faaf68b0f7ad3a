"""Compare: what is shared runs once, every variant has the same seeds, and luck is not taken for a difference."""

import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from alignkit import Policy, RecipeError, StageError
from alignkit.cli import main
from alignkit.compare.comparison import compare_recipe
from alignkit.compare.measured import Comparison, Cost, on_frontier, read_comparison
from alignkit.compare.page import page_of
from alignkit.compare.planning import ComparisonPlan, plan_comparison
from alignkit.compare.tables import as_dict, cells_of, comparison_of, conclusion, remarks_on, show_comparison
from alignkit.compare.variants import VariantRequest, read_vary, split
from alignkit.noise import SeedSpread, difference, quantile, spread_of_seeds
from alignkit.overoptimisation import Law
from alignkit.plan.planner import make_plan
from alignkit.recipe.packaged import find_recipe
from tests.planning import write_model, write_rows

PLUGIN = '''
from collections.abc import Sequence

from pydantic import NonNegativeFloat

from alignkit import Answer, Policy, Preferences, Prompts, Reward, Scores, Settings, Stage, Text
from alignkit import Paper, hookimpl, method, reward
from alignkit.kit import load_policy


class Nothing(Settings):
    pass


class Push(Settings):
    far: NonNegativeFloat = 0.1
    """How far the weights are pushed."""
    note: str = ""


def pushed(settings: Push, stage: Stage, policy: Policy) -> Policy:
    import torch

    model, tokenizer = load_policy(policy)
    luck = torch.Generator().manual_seed(stage.seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=luck) * settings.far)
    return stage.save_policy(model, tokenizer)


@method("tune")
def tune(settings: Push, stage: Stage, *, policy: Policy) -> Policy:
    """Make a start."""
    return pushed(settings, stage, policy)


@method("lift")
def lift(settings: Push, stage: Stage, *, policy: Policy, rewards: tuple[Reward, ...], prompts: Prompts) -> Policy:
    """Raise rewards, it is hoped."""
    return pushed(settings, stage, policy)


@method("shift", papers=(
    Paper("tiny-shift", "Small Steps", "arXiv 2501.00001", {"far": 0.01}),
    Paper("shared", "Of Two", "arXiv 2501.00002"),
))
def shift(settings: Push, stage: Stage, *, policy: Policy) -> Policy:
    """Do without rewards."""
    return pushed(settings, stage, policy)


@method("rank", papers=(Paper("shared", "Of Two", "arXiv 2501.00002"),))
def rank(settings: Push, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Learn from pairs."""
    return pushed(settings, stage, policy)


@method("create")
def create(settings: Nothing, stage: Stage) -> Policy:
    """Start from nothing."""


@method("tell")
def tell(settings: Nothing, stage: Stage, *, policy: Policy) -> Text:
    """Make no policy."""
    return stage.save_rows(Text, [{"text": "so"}])


@method("survey")
def survey(settings: Nothing, stage: Stage, *, policies: tuple[Policy, ...]) -> Scores:
    """Measure policies in another way."""
    for policy in policies[1:]:
        stage.result(f"size {policy.name}", 1.0, 2.0)
    return stage.save_rows(Scores, [{"policy": policy.name} for policy in policies])


@reward("brief")
def brief(answers: Sequence[Answer], settings: Nothing) -> list[float]:
    """Prefer short answers."""
    return [-float(len(answer.text)) for answer in answers]


@reward("vowels")
def vowels(answers: Sequence[Answer], settings: Nothing) -> list[float]:
    """Prefer vowels."""
    return [float(sum(letter in "aeiou" for letter in answer.text)) for answer in answers]


@hookimpl
def alignkit_methods():
    return [tune, lift, shift, rank, create, tell, survey]


@hookimpl
def alignkit_rewards():
    return [brief, vowels]
'''

RECIPE = """
name = "small"
seed = 3
[sources]
base = { policy = "model" }
prompts = { prompts = "prompts.jsonl", held_out = 0.5 }
proxy = { reward = "function:brief" }
truth = { reward = "function:vowels" }
[stage.start]
method = "tune"
[stage.align]
method = "lift"
inputs.rewards = ["proxy"]
gates.speed.min = 3
shift.far = 0.3
[stage.after]
method = "tell"
[stage.measured]
method = "evaluate"
inputs.policies = ["start", "align"]
inputs.rewards = ["truth"]
gates."reward align".min = 3
evaluate = { prompts = 24, max_new_tokens = 6, max_length = 64, samples = 1 }
"""

BARE = RECIPE[: RECIPE.index("[stage.after]")]
"""Without a stage that evaluates."""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a recipe, its plugin and its sources."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    monkeypatch.delenv("COLUMNS", raising=False)
    write_model(tmp_path / "model")
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"how was day {number}?"} for number in range(60)])
    (tmp_path / "small.toml").write_text(RECIPE)
    (tmp_path / "fakes.py").write_text(PLUGIN)
    return tmp_path


def planned(methods: str = "", *vary: str, recipe: str = RECIPE, **more: Any) -> ComparisonPlan:
    Path("small.toml").write_text(recipe)
    asked = VariantRequest(more.pop("stage", None), split(methods), read_vary(vary), more.pop("seeds", 1))
    return plan_comparison("small.toml", asked, plugins=["fakes.py"], **more)


def command(*words: str) -> Result:
    """Call `alignkit compare` with the recipe and its plugin."""
    return CliRunner().invoke(main, ["compare", "small.toml", "-p", "fakes.py", *words], prog_name="alignkit")


# What is planned


def test_every_variant_is_a_stage_under_every_seed_and_one_stage_measures_all(desk: Path) -> None:
    made = planned("lift,shift", seeds=2)

    wanted = [stage for stage in made.plan.stages if stage.wanted]
    assert [stage.name for stage in wanted] == [
        "start", "align", "align-shift-s1", "align-lift-s2", "align-shift-s2", "measured",
    ]  # fmt: skip
    assert wanted[-1].inputs == {
        "policies": ("start", "align", "align-lift-s2", "align-shift-s1", "align-shift-s2"),
        "rewards": ("truth", "proxy"),
        "prompts": ("prompts",),
    }
    assert all(stage.inputs["policy"] == ("start",) for stage in wanted[1:-1])


SURVEYED = f"""result = ["measured", "tax"]
{RECIPE}
[stage.tax]
method = "survey"
inputs.policies = ["start", "align"]
gates."size align".max = 1
"""


def test_other_stages_that_measure_the_compared_one_measure_every_variant(desk: Path) -> None:
    made = planned("lift,shift", recipe=SURVEYED)

    tax = made.plan.stage("tax")
    assert tax.wanted
    assert tax.inputs == {"policies": ("start", "align", "align-shift-s1")}
    assert tax.gates == {}


def test_a_measure_that_the_recipe_does_not_want_is_left_out_of_a_comparison(desk: Path) -> None:
    made = planned("lift,shift", recipe=SURVEYED.replace(', "tax"]', "]"))

    assert "tax" not in [stage.name for stage in made.plan.stages]


def test_variants_have_the_same_seeds_and_other_stages_keep_theirs(desk: Path) -> None:
    alone, made = make_plan("small.toml", plugins=["fakes.py"]), planned("lift,shift", seeds=2)

    seeds = {stage.name: stage.seed for stage in made.plan.stages}
    assert (seeds["align"], seeds["align-lift-s2"]) == made.seeds == (seeds["align-shift-s1"], seeds["align-shift-s2"])
    assert [seeds[name] for name in ("start", "align", "measured")] == [
        alone.stage(name).seed for name in ("start", "align", "measured")
    ]


def test_a_seed_of_the_stage_is_the_first_one(desk: Path) -> None:
    made = planned("lift,shift", recipe=RECIPE.replace('method = "lift"', 'method = "lift"\nseed = 5'), seeds=3)

    assert made.seeds[0] == 5
    assert len({*made.seeds}) == 3


def test_the_recipes_own_variant_is_the_stage_that_recipe_runs(desk: Path) -> None:
    alone, made = make_plan("small.toml", plugins=["fakes.py"]), planned("shift,lift")

    assert made.plan.stage("align").fingerprint == alone.stage("align").fingerprint


def test_a_value_that_is_the_recipes_own_is_its_own_variant(desk: Path) -> None:
    made = planned("", "align.lift.far=0.2,0.3", recipe=RECIPE.replace("shift.far = 0.3", "lift.far = 0.20"))

    assert [contender.stages for contender in made.contenders] == [("align",), ("align-lift-far-0-3-s1",)]


def test_a_variants_stage_is_called_the_same_whatever_it_is_compared_with(desk: Path) -> None:
    one, other = planned("lift,shift", seeds=2), planned("", "align.shift.far=0.1,0.2")

    assert one.contenders[1].stages[0] == "align-shift-s1"
    assert [contender.stages for contender in other.contenders] == [
        ("align-shift-far-0-1-s1",),
        ("align-shift-far-0-2-s1",),
    ]


def test_a_grid_has_every_combination_and_own_settings_vary_only_for_their_method(desk: Path) -> None:
    made = planned("lift,shift", "align.shift.far=0.1,0.2", "align.shift.note=a,b")

    assert [contender.variant.label for contender in made.contenders] == [
        "lift",
        "shift far=0.1 note=a",
        "shift far=0.1 note=b",
        "shift far=0.2 note=a",
        "shift far=0.2 note=b",
    ]


def test_a_paper_is_compared_by_its_name_with_the_settings_that_are_its_own(desk: Path) -> None:
    made = planned("lift,tiny-shift")

    assert [contender.variant.label for contender in made.contenders] == ["lift", "tiny-shift"]
    stage = made.plan.stage("align-tiny-shift-s1")
    assert (stage.method.name, stage.settings.model_dump()["far"]) == ("shift", 0.01)  # the recipe's own is 0.3


def test_what_varies_goes_before_what_is_the_papers(desk: Path) -> None:
    made = planned("2501.00001", "align.shift.far=0.5,0.6", "align.shift.note=a")

    assert [contender.variant.label for contender in made.contenders] == [
        "tiny-shift far=0.5 note=a",
        "tiny-shift far=0.6 note=a",
    ]


def with_settings(desk: Path, *lines: str) -> Path:
    """Write the packaged recipe with further settings of the stage that is compared."""
    text = find_recipe("rlhf.toml").read_text("utf-8")
    (desk / "more.toml").write_text(text.replace("grpo.updates  ", "\n".join([*lines, "grpo.updates"]), 1), "utf-8")
    return desk / "more.toml"


def test_a_paper_takes_the_place_of_a_preset_and_of_settings_that_it_refuses(desk: Path) -> None:
    recipe = with_settings(desk, 'grpo.preset = "dapo"', "grpo.clip_high = 0.4", "grpo.measured = 8")

    made = plan_comparison(recipe, VariantRequest(methods=["grpo", "sapo"]))

    own, paper = (made.plan.stage(contender.stages[0]).settings.model_dump() for contender in made.contenders)
    assert [own[key] for key in ("surrogate", "clip_high", "dynamic_sampling", "measured")] == ["clip", 0.4, 10, 8]
    assert [paper[key] for key in ("surrogate", "clip_high", "dynamic_sampling", "measured")] == ["gate", None, 0, 8]


def test_a_paper_is_refused_beside_what_the_command_line_says(desk: Path) -> None:
    recipe = with_settings(desk)

    with pytest.raises(RecipeError) as caught:
        plan_comparison(recipe, VariantRequest(methods=["grpo", "sapo"]), set={"align.grpo.clip_high": 0.4})

    told = "stage 'align': grpo: surrogate = \"gate\" clips nothing; leave clip and clip_high out"
    assert str(caught.value).partition(": ")[2] == told


def test_a_paper_without_settings_leaves_a_preset_out(desk: Path) -> None:
    recipe = with_settings(desk, 'best-of-n.preset = "best-of-n"', "best-of-n.answers = 4")

    made = plan_comparison(recipe, VariantRequest(methods=["best-of-n", "raft"]))

    updates = [made.plan.stage(one.stages[0]).settings.model_dump()["updates"] for one in made.contenders]
    assert updates == [1, 100]


def test_what_varies_is_typed_as_with_set(desk: Path) -> None:
    made = planned("", "align.lift.note=1.50,2")

    notes = [made.plan.stage(contender.stages[0]).settings.model_dump()["note"] for contender in made.contenders]
    assert notes == ["1.50", "2"]


def test_changes_by_set_hold_for_every_variant(desk: Path) -> None:
    made = planned("lift,shift", set={"align.shift.far": "0.7", "start.tune.note": "1.0"})

    assert made.plan.stage("align-shift-s1").settings.model_dump()["far"] == 0.7
    assert made.plan.stage("start").settings.model_dump()["note"] == "1.0"


def test_gates_of_the_compared_stage_do_not_stop_a_comparison(desk: Path) -> None:
    made = planned("lift,shift")

    assert [stage.gates for stage in made.plan.stages if stage.name in ("align", "align-shift-s1", "measured")] == [
        {}, {}, {},
    ]  # fmt: skip


def test_the_rewards_of_the_recipes_own_measure_decide(desk: Path) -> None:
    made = planned("lift,shift")

    assert (made.deciding, made.trained) == (("truth",), {"proxy"})


def test_without_a_measure_of_its_own_a_reward_decides_that_nobody_learns_from(desk: Path) -> None:
    made = planned("lift,shift", recipe=BARE)

    assert (made.scores, made.deciding) == ("scores", ("truth",))
    assert made.plan.stage("scores").inputs["rewards"] == ("truth", "proxy")


def test_where_every_reward_is_learnt_from_that_one_decides(desk: Path) -> None:
    made = planned("lift,shift", recipe=BARE.replace('truth = { reward = "function:vowels" }', ""))

    assert made.deciding == ("proxy",)


def test_stages_after_the_compared_one_that_do_not_need_it_are_kept(desk: Path) -> None:
    made = planned("lift,shift", recipe=RECIPE.replace('method = "tell"', 'method = "tell"\ninputs.policy = "start"'))

    assert made.plan.stage("after").inputs == {"policy": ("start",)}
    assert not made.plan.stage("after").wanted


def test_a_policy_source_may_be_the_start(desk: Path) -> None:
    made = planned("tune,shift", stage="start")

    assert (made.start, made.plan.stage("measured").inputs["policies"]) == (
        "base",
        ("base", "start", "start-shift-s1"),
    )


def test_a_long_or_odd_value_makes_a_name_all_the_same(desk: Path) -> None:
    made = planned("", "align.lift.note=Ä very long note that nobody needs,b")

    assert made.contenders[0].stages == ("align-lift-note---very-long-82d9df-s1",)


def test_two_values_that_make_one_name_make_two_stages(desk: Path) -> None:
    made = planned("", "align.lift.note=a-b,a.b")

    names = [contender.stages[0] for contender in made.contenders]
    assert names[0] == "align-lift-note-a-b-s1"
    assert len({*names}) == 2


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a,b", ["a", "b"]), ("[1, 2],3", ["[1, 2]", "3"]), ("'a,b',c", ["'a,b'", "c"]), ("", []), ("a,", ["a", ""])],
)
def test_values_are_split_outside_brackets_and_quotes(text: str, parts: list[str]) -> None:
    assert split(text) == parts


# What is refused


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--stage", "aling", "--methods", "lift"],
            ["--stage aling: there is no stage 'aling'; did you mean 'align'?"],
        ),
        (
            [],
            ["stage 'align': nothing differs; name methods, --methods ppo,grpo, or values, "
             "--vary align.METHOD.SETTING=A,B"],
        ),
        (["--methods", "lift,shfit"], ["--methods shfit: stage 'align': no plugin offers a method 'shfit'; "
                                       "did you mean 'shift'?"]),
        (["--methods", "lift,lift"], ["--methods lift,lift: 'lift' is named twice; name it once"]),
        (
            ["--methods", "lift,rank"],
            ["small.toml:11: stage 'align': rank needs Preferences as pairs, and nothing before it makes them; "
             'add a source: { preferences = "..." }'],
        ),
        (
            ["--vary", "align.lift.fra=1,2"],
            ["--vary align.lift.fra=1: stage 'align': lift.fra: unknown setting; did you mean 'far'?",
             "--vary align.lift.fra=2: stage 'align': lift.fra: unknown setting; did you mean 'far'?"],
        ),
        (
            ["--vary", "align.lift.far=0.1,far"],
            ['--vary align.lift.far=far: stage \'align\': lift.far: must be a number, and is "far"'],
        ),
        (
            ["--vary", "align.lift.far=0.1,0.10"],
            ["--vary align.lift.far: stage 'align': the variants 'lift far=0.1' and 'lift far=0.10' are the same; "
             "leave one out, or vary a setting that the method has"],
        ),
        (
            ["--methods", "lift", "--vary", "align.shift.far=1,2"],
            ["--vary align.shift.far: shift is not among the methods that are compared; write --methods lift,shift"],
        ),
        (
            ["--stage", "align", "--vary", "start.tune.far=1,2"],
            ["--vary start.tune.far: only stage 'align' varies here; --set changes another one, for all variants "
             "alike"],
        ),
        (["--vary", "align.method=lift,shift"], ["--vary align.method: method has an option of its own; "
                                                 "write --methods A,B"]),
        (["--vary", "align.seed=1,2"], ["--vary align.seed: seed has an option of its own; write --seeds N"]),
        (["--vary", "align.lift.far"], ["--vary align.lift.far: no values given; write --vary KEY=A,B,..."]),
        (
            ["--vary", "align.lift.far=1", "--vary", "align.lift.far=2"],
            ["--vary align.lift.far=2: this setting varies twice; write --vary align.lift.far=A,B,... once"],
        ),
        (
            ["--methods", "lift,tell"],
            ["--methods tell: stage 'align': tell makes Text, and only policies are compared; choose another with "
             "--stage or --methods"],
        ),
        (
            ["--methods", "lift,shared"],
            ["--methods shared: 'shared' is the paper of several methods; write rank or shift"],
        ),
        (
            ["--methods", "tiny-shift,shift", "--set", "align.shift.far=0.01"],
            ["--methods: stage 'align': the variants 'tiny-shift' and 'shift' are the same; leave one out, or vary a "
             "setting that the method has"],
        ),
        (
            ["--methods", "create"],
            ["small.toml:11: stage 'align': create starts from no policy, so there is nothing to measure from; "
             "compare methods that take a policy"],
        ),
        (
            ["--vary", "align.inputs.policy=start,base"],
            ["small.toml:11: stage 'align': the variants start from different policies: lift "
             "inputs.policy=start from 'start' and lift inputs.policy=base from 'base'; let all start from one, "
             "under inputs"],
        ),
        (
            ["--methods", "lift,shift", "--set", "start.tune.fra=1"],
            ["--set start.tune.fra: stage 'start': tune.fra: unknown setting; did you mean 'far'?"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_runs(desk: Path, words: list[str], told: list[str]) -> None:
    result = command(*words)

    assert result.stderr.splitlines() == [f"error: {line}" for line in told]
    assert result.exit_code == 2
    assert not Path("runs/stages").exists()


def test_from_python_values_have_their_types(desk: Path) -> None:
    made = plan_comparison("small.toml", VariantRequest(vary={"align.lift.far": [0.1, 0.25]}), plugins=["fakes.py"])

    assert [contender.variant.label for contender in made.contenders] == ["lift far=0.1", "lift far=0.25"]


def test_from_python_a_comparison_of_nothing_is_refused(desk: Path) -> None:
    with pytest.raises(RecipeError) as error:
        compare_recipe("small.toml", vary={"align.lift.far": []}, seeds=0, plugins=["fakes.py"])

    assert str(error.value).splitlines() == [
        "seeds = 0: every variant needs a seed; give one or more",
        "--vary align.lift.far: no values given; write --vary align.lift.far=A,B,...",
    ]


def test_a_recipe_that_cannot_be_measured_says_how_it_could(desk: Path) -> None:
    recipe = BARE.replace('"lift"', '"shift"').replace('inputs.rewards = ["proxy"]', "")
    Path("small.toml").write_text(recipe.replace('proxy = { reward = "function:brief" }', "").replace("truth =", "#"))

    result = command("--methods", "shift")

    assert result.stderr == (
        "error: small.toml: stage 'scores': evaluate needs Reward as rewards, and nothing before it makes one; methods "
        'that do: reward; or say how to measure: add [stage.scores] with method = "evaluate"\n'
    )


# What is shown


def test_a_comparison_is_planned_without_torch(desk: Path) -> None:
    words = ["compare", "rlhf", "--methods", "ppo,grpo", "--seeds", "2", "--plan"]
    script = f"import sys\nfrom alignkit.cli import main\nmain({words}, standalone_mode=False)\n"
    script += 'print({"torch", "transformers", "trl", "datasets", "peft"} & {*sys.modules})'

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[0] == (
        "comparing align of the packaged recipe rlhf: ppo, grpo; seeds 3534157096, 3884293653; from finetune, decided "
        "by gold"
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_planned_comparison_in_json_says_which_stages_are_which_variant(desk: Path) -> None:
    told = json.loads(command("--methods", "lift,shift", "--seeds", "2", "--plan", "--json").stdout)

    assert told["variants"] == [
        {"variant": "lift", "method": "lift", "stages": ["align", "align-lift-s2"]},
        {"variant": "shift", "method": "shift", "stages": ["align-shift-s1", "align-shift-s2"]},
    ]
    assert told["plan"]["stages"]["align-shift-s2"]["state"] == "will run"
    assert (told["start"], told["scores"], told["deciding"]) == ("start", "measured", ["truth"])


# What is noise


@pytest.mark.parametrize(
    ("outside", "freedom", "expected"),
    [(0.05, 1, 12.7062), (0.05, 2, 4.3027), (0.05, 3, 3.1824), (0.05, 10, 2.2281), (0.05, 1000, 1.9623),
     (0.025, 4, 3.4954), (0.01, 5, 4.0321), (0.001, 30, 3.6460)],
)  # fmt: skip
def test_students_quantiles_are_those_of_the_tables(outside: float, freedom: float, expected: float) -> None:
    assert quantile(outside, freedom) == pytest.approx(expected, abs=1e-3)


def test_a_difference_is_taken_prompt_by_prompt() -> None:
    ours, theirs = [[1.0, 11.0, 21.0]], [[0.0, 10.0, 20.5]]

    found = difference(ours, theirs, SeedSpread())

    # Differences 1, 1 and 0.5: mean 0.8333, variance 0.08333, standard error 0.16667; t for 2 is 4.30265.
    assert (found.value, found.half) == pytest.approx((0.83333, 0.71711), abs=1e-4)
    assert not found.within_noise


def test_seeds_that_disagree_make_a_difference_noise() -> None:
    ours, theirs = [[1.0, 1.1], [3.0, 3.1]], [[0.5, 0.6], [2.6, 2.7]]

    found = difference(ours, theirs, spread_of_seeds([ours, theirs]))

    # Means by seed 1.05, 3.05 and 0.55, 2.65: variances 2 and 2.205, pooled 2.1025 with 2 degrees of freedom;
    # standard error sqrt(2.1025 * (1/2 + 1/2)) = 1.45; t for 2 is 4.30265.
    assert (found.value, found.half) == pytest.approx((0.45, 6.23885), abs=1e-4)
    assert found.within_noise


def test_several_comparisons_widen_the_interval() -> None:
    ours, theirs = [[1.0, 2.0, 4.0]], [[0.0, 0.5, 1.0]]

    one, four = (difference(ours, theirs, SeedSpread(), comparisons=count) for count in (1, 4))

    assert four.half > one.half


def test_equal_scores_differ_by_nothing() -> None:
    found = difference([[1.0, 2.0]], [[1.0, 2.0]], SeedSpread())

    assert (found.value, found.half, found.within_noise) == (0.0, 0.0, True)


def test_of_variants_that_are_alike_few_are_taken_for_different() -> None:
    luck = random.Random(0)
    prompts = [luck.gauss(0, 2) for _ in range(40)]

    def variant() -> list[list[float]]:
        seeds = [luck.gauss(0, 0.5) for _ in range(2)]
        return [[prompt + seed + luck.gauss(0, 1) for prompt in prompts] for seed in seeds]

    wrong = 0
    for _ in range(400):
        three = [variant() for _ in range(3)]
        wrong += not difference(three[0], three[1], spread_of_seeds(three)).within_noise

    assert wrong / 400 == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize(
    ("point", "stands"), [((1.0, 0.5), True), ((2.0, 0.5), False), ((2.0, 0.6), True), ((0.0, 0.0), True)]
)
def test_the_frontier_has_what_no_other_beats_in_both(point: tuple[float, float], stands: bool) -> None:
    others = [(0.0, 0.0), (1.0, 0.5), (None, 9.0)]

    assert on_frontier(point, [*others, point]) is stands


# What is told


def row(reward: float, spread: float, kl: float | None, proxy: float = 0.0) -> dict[str, Any]:
    """A row as `evaluate` makes it, of 40 prompts."""
    each = [reward + spread * (-1) ** number for number in range(40)]
    return {
        "prompts": 40, "reward": reward, "reward/truth": reward, "reward/proxy": proxy, "kl": kl, "length": 5.0,
        "eos_rate": 1.0, "distinct_1": 0.25, "distinct_2": 0.5, "win_rate": 0.75, "each": {"reward": each},
    }  # fmt: skip


def measured(made: ComparisonPlan, *rows: dict[str, Any]) -> Comparison:
    wired = made.plan.stage(made.scores).inputs["policies"]
    return read_comparison(made, Path("runs/small-compare"), rows, dict.fromkeys(wired, Cost(12.0, 2**30)))


START = row(0.0, 0.1, 0.0)


def test_the_console_has_one_table_and_says_what_may_be_concluded(desk: Path) -> None:
    found = measured(planned("lift,shift"), START, row(0.5, 0.1, 1.0, 0.2), row(0.8, 0.1, 3.0, 0.1))

    assert show_comparison(found, None) == [
        "variant  truth          proxy  wins over start   KL    length  distinct-1/2  frontier  time  memory",
        "start    0.000 ± 0.032  0.000                    0.00  5.0     0.25/0.50     yes",
        "lift     0.500 ± 0.032  0.200  75% (60% to 86%)  1.00  5.0     0.25/0.50     yes       12 s  1.0 GiB",
        "shift    0.800 ± 0.032  0.100  75% (60% to 86%)  3.00  5.0     0.25/0.50     yes       12 s  1.0 GiB",
        "",
        "lift   0.3 ± 0 behind",
        "shift  highest",
        "",
        "shift is best in truth, beyond noise.",
        f"40 held-out prompts, one seed of align ({found.seeds[0]}).",
        "95 % intervals from standard errors over the same held-out prompts (paired, prompt by prompt); with one seed "
        "it is not known how much another seed would change: --seeds 3 tells; of wins Wilson's, over the prompts.",
    ]


CURVE = {
    "measure": "truth", "samples": 64, "prompts": 40, "reward": 0.0, "reliable_kl": 2.159,
    "curve": [[0.0, 0.0], [1.0, 0.8], [2.159, 1.0]],
    "best_of": [
        {"by": name, "n": n, "reward": reward * n, "interval": 0.01, "most_kl": kl}
        for name, reward in (("truth", 0.2), ("proxy", 0.1)) for n, kl in ((2, 0.193), (4, 0.636))
    ],
}  # fmt: skip


def attained(row: dict[str, Any], share: float | None, *, above: bool = False) -> dict[str, Any]:
    """Add to a row what its policy has of what is attainable."""
    parts = [] if share is None else [share + 0.1 * (-1) ** number for number in range(40)]
    return {**row, "attained": {"share": share, "by_prompt": parts, "above": above, "kl": row["kl"]}}


def under_ceiling(made: ComparisonPlan, *, above: bool = False) -> Comparison:
    lifted, shifted = attained(row(0.5, 0.1, 1.0), 0.625, above=above), attained(row(0.8, 0.1, 3.0), None)
    return measured(made, {**START, "ceiling": CURVE}, lifted, shifted)


def test_a_ceiling_brings_a_share_for_each_variant_and_the_best_of_n(desk: Path) -> None:
    found = under_ceiling(planned("lift,shift"))
    told, column = show_comparison(found, None), cells_of(found)[0].index("of attainable")

    assert [cells[column] for cells in cells_of(found)] == ["of attainable", "", "62% ± 3%", "-"]
    assert told[4:8] == [
        "",
        "best of  chosen by truth  chosen by proxy  KL at most",
        "2        0.400 ± 0.010    0.200 ± 0.010    0.19",
        "4        0.800 ± 0.010    0.400 ± 0.010    0.64",
    ]
    assert told[-1] == (
        "Of attainable: the share that was gained of the most that any policy can gain at the same KL. It follows from "
        "64 answers of the start to each of 40 prompts, which tell it up to a KL of 2.2."
    )


def test_the_law_of_the_best_of_n_is_fitted_for_each_reward_that_chooses(desk: Path) -> None:
    made, sizes = planned("lift"), (2, 4, 8, 16)
    laws = {"truth": (0.9, 0.1), "proxy": (0.7, 0.3)}
    best = [
        {"by": name, "n": n, "reward": root * (alpha - beta * root), "interval": 0.01, "most_kl": root**2}
        for name, (alpha, beta) in laws.items()
        for n, root in ((n, math.sqrt(math.log(n) - 1 + 1 / n)) for n in sizes)
    ]

    found = measured(made, {**START, "ceiling": {**CURVE, "best_of": best}}, attained(row(0.5, 0.1, 1.0), 0.6))

    assert found.start.laws == pytest.approx(
        {
            f"{name}/{key}": value
            for name, law in laws.items()
            for key, value in zip(Law._fields, (*law, 1.0), strict=True)
        }
    )
    assert (
        measured(made, {**START, "ceiling": CURVE}, attained(row(0.5, 0.1, 1.0), 0.6)).start.laws == {}
    )  # two points say nothing of two coefficients


def test_shares_are_averaged_over_seeds_and_missing_where_one_is(desk: Path) -> None:
    made, start = planned("lift", seeds=2), {**START, "ceiling": CURVE}
    rows = [attained(row(0.5, 0.1, 1.0), share) for share in (0.6, 0.8, None)]

    both, one = measured(made, start, rows[0], rows[1]).variants, measured(made, start, rows[0], rows[2]).variants

    assert both[0].attained is not None
    assert both[0].attained.value == pytest.approx(0.7)
    assert both[0].attained.half > 0.1  # the seeds lie 0.2 apart
    assert one[0].attained is None


def on_the_way(of: str, step: int, reward: float, kl: float) -> dict[str, Any]:
    return {**row(reward, 0.1, kl), "of": of, "step": step}


def test_policies_on_the_way_are_a_line_with_a_peak(desk: Path) -> None:
    made = planned("lift,shift", seeds=2)
    first, second, *_ = made.plan.stage(made.scores).inputs["policies"][1:]
    ways = [
        [
            on_the_way(name, step, reward + more, kl)
            for step, reward, kl in ((2, 0.4, 1.0), (4, 0.9, 4.0), (6, 0.5, 8.0))
        ]
        for name, more in ((first, 0.0), (second, 0.1))
    ]

    found = measured(made, START, *ways[0], row(0.1, 0.1, 9.0), *ways[1], row(0.2, 0.1, 9.0), *[row(0.3, 0.1, 2.0)] * 2)

    lift, shift = found.variants
    assert [(point.step, point.kl, point.reward) for point in lift.way] == [
        (2, 1.0, pytest.approx(0.45)), (4, 4.0, pytest.approx(0.95)), (6, 8.0, pytest.approx(0.55)),
    ]  # fmt: skip
    assert (lift.peak_reward, lift.peak_kl) == (pytest.approx(0.95), 4.0)
    assert (shift.way, shift.peak_reward, shift.laws) == ((), None, {})
    assert lift.laws["best_of_n/r2"] > 0.5
    column = cells_of(found)[0].index("peak")
    assert [cells[column] for cells in cells_of(found)] == ["peak", "", "0.950 at KL 4.00", ""]
    assert comparison_of(json.loads(json.dumps(as_dict(found)))) == found
    assert "attainable" not in page_of(found)


def test_a_variant_above_the_ceiling_is_an_error_of_the_report(desk: Path) -> None:
    found = under_ceiling(planned("lift,shift"), above=True)

    error = (
        "ERROR: lift (align) lies above the most that any policy can have at its KL: its reward or its KL is measured "
        "wrongly."
    )
    assert error in remarks_on(found)
    assert f'<p class="failure"><strong>{error}</strong></p>' in page_of(found)
    assert "ERROR" not in page_of(under_ceiling(planned("lift,shift")))


def test_the_frontier_has_the_ceiling_the_best_of_n_and_every_policy(desk: Path) -> None:
    page = page_of(under_ceiling(planned("lift,shift")))

    legend = re.findall(r'<span class="key key-\d">(.*?)</span>', page)
    assert legend == ["attainable", "best of n by truth", "best of n by proxy", "start", "lift", "shift"]
    assert page.count("<circle") == 7
    assert "up to a KL of 2.2" in page


def test_a_comparison_with_a_ceiling_is_read_back_whole(desk: Path) -> None:
    found = under_ceiling(planned("lift,shift"), above=True)

    assert comparison_of(json.loads(json.dumps(as_dict(found)))) == found


def test_a_comparison_of_before_there_were_ceilings_is_read(desk: Path) -> None:
    found = measured(planned("lift,shift"), START, row(0.5, 0.1, 1.0), row(0.8, 0.1, 3.0))
    facts = as_dict(found)

    for line in (facts, facts["start"], *facts["variants"]):
        for name in ("ceiling", "attained", "above"):
            line.pop(name, None)

    assert comparison_of(facts) == found


def test_the_ceiling_of_a_comparison_is_that_of_its_start(desk: Path) -> None:
    settings = 'ceiling = { samples = 16, start = "align" } }'

    made = planned("lift,shift", recipe=RECIPE.replace("samples = 1 }", f"samples = 1, {settings}"))

    assert made.plan.stage("measured").settings.model_dump()["ceiling"] == {"samples": 16, "prompts": None, "start": ""}


def test_a_difference_within_noise_is_said_to_be_so(desk: Path) -> None:
    found = measured(planned("lift,shift"), START, row(0.5, 0.1, 1.0), row(0.51, 0.3, 1.0))

    assert conclusion(found) == "shift is highest in truth, and lift cannot be told from it: within noise."
    assert "lift   0.010 ± 0.065 behind, within noise" in show_comparison(found, None)


def test_variants_that_are_not_above_the_start_are_said_to_be_so(desk: Path) -> None:
    found = measured(planned("lift,shift"), START, row(-0.5, 0.1, 1.0), row(0.01, 0.3, 1.0))

    assert conclusion(found) == "No variant is above the start in truth beyond noise."


def test_a_reward_that_decides_and_was_learnt_from_is_told(desk: Path) -> None:
    made = planned("lift,shift", recipe=BARE.replace('truth = { reward = "function:vowels" }', ""))

    found = measured(made, START, row(0.5, 0.1, 1.0), row(0.51, 0.3, 1.0))

    assert remarks_on(found)[-1] == "proxy decides and was learnt from: a variant may have learnt its mistakes, too."


def test_seeds_are_averaged_and_every_one_is_kept(desk: Path) -> None:
    made = planned("lift", seeds=2)

    found = measured(made, START, row(0.4, 0.1, 1.0), row(0.6, 0.1, 3.0))

    line = found.variants[0]
    assert (line.reward, line.by_seed, line.kl) == (pytest.approx(0.5), (0.4, 0.6), 2.0)


def test_a_kl_that_cannot_be_measured_is_left_out(desk: Path) -> None:
    found = measured(planned("lift,shift"), START, row(0.5, 0.1, None), row(0.8, 0.1, 3.0))

    assert [line.frontier for line in found.variants] == [False, True]
    assert page_of(found).count("<circle") == 2


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_comparison_fits_a_narrow_terminal(desk: Path, width: int) -> None:
    found = measured(planned("lift,shift"), START, row(0.5, 0.1, 1.0), row(0.8, 0.1, 3.0))

    assert max(map(len, show_comparison(found, width))) <= width


def test_where_lines_would_be_too_long_policies_stand_side_by_side(desk: Path) -> None:
    found = measured(planned("lift,shift"), START, row(0.5, 0.1, 1.0), row(0.8, 0.1, 3.0))

    assert show_comparison(found, 80)[:3] == [
        "variant          start          lift              shift",
        "truth            0.000 ± 0.032  0.500 ± 0.032     0.800 ± 0.032",
        "proxy            0.000          0.000             0.000",
    ]


def test_a_comparison_in_json_can_be_read_back(desk: Path) -> None:
    found = measured(planned("lift,shift"), START, row(0.5, 0.1, 1.0), row(0.51, 0.3, 1.0))

    told = json.loads(json.dumps(as_dict(found)))
    assert (told["best"], told["variants"][0]["behind"]["within_noise"]) == ("shift", True)
    assert told["variants"][1]["stages"] == ["align-shift-s1"]


def test_a_table_of_another_length_is_refused(desk: Path) -> None:
    with pytest.raises(StageError) as error:
        measured(planned("lift,shift"), START)

    assert str(error.value) == "stage 'measured': it measured 1 policies, not 3"


def test_what_varies_cannot_break_the_page(desk: Path) -> None:
    made = planned("", "align.lift.note=<b>,x")

    page = page_of(measured(made, START, row(0.5, 0.1, 1.0), row(0.8, 0.1, 3.0)))

    assert "<b>" not in page
    assert "lift note=&lt;b&gt;" in page


# What is run


@pytest.fixture
def real(desk: Path, tiny_policy: Policy) -> Path:
    """The same desk with a real model."""
    shutil.rmtree(desk / "model")
    shutil.copytree(tiny_policy.path, desk / "model")
    return desk


def test_a_comparison_runs_what_is_shared_once_and_measures_all_together(real: Path) -> None:
    result = command("--methods", "lift,shift", "--seeds", "2", "--inline", "--json")

    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert sorted(folder.name[:-9] for folder in Path("runs/stages").iterdir() if folder.name[0] != ".") == [
        "align", "align-lift-s2", "align-shift-s1", "align-shift-s2", "measured", "start",
    ]  # fmt: skip
    assert found["start"]["kl"] == 0
    assert all(line["kl"] > 0 and line["seconds"] > 0 and line["memory"] > 2**20 for line in found["variants"])
    assert [sorted(line["rewards"]) for line in found["variants"]] == [["proxy", "truth"]] * 2


def test_a_comparison_leaves_one_report_that_needs_nothing_else(real: Path) -> None:
    found = compare_recipe("small.toml", methods=["lift", "shift"], inline=True, plugins=["fakes.py"])

    page = (found.folder / "report.html").read_text("utf-8")
    assert found.folder == Path("runs/small-compare/latest").resolve()
    assert comparison_of(as_dict(found)) == found
    assert page.index("Which is best") < page.index("What came of it")
    assert page.index("On the frontier: ") < page.index("Which is best")
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert json.loads((found.folder / "comparison.json").read_text()) == as_dict(found)


def test_a_second_comparison_reuses_the_first_ones_variants(real: Path) -> None:
    compare_recipe("small.toml", methods=["lift", "shift"], inline=True, plugins=["fakes.py"])
    begun: list[str] = []

    compare_recipe(
        "small.toml",
        methods=["lift", "tune", "shift"],
        inline=True,
        plugins=["fakes.py"],
        observers=[lambda event: begun.append(event.stage) if type(event).__name__ == "StageStarted" else None],
    )

    assert begun == ["align-tune-s1", "measured"]


def test_the_command_ends_with_one_table_and_the_report(real: Path) -> None:
    result = command("--vary", "align.lift.far=0.1,0.5", "--inline")

    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["variant", "truth", "proxy"]
    assert [line.split("  ")[0] for line in lines[1:4]] == ["start", "lift far=0.1", "lift far=0.5"]
    assert lines[-1] == f"report: runs/small-compare/{Path('runs/small-compare/latest').readlink()}/report.html"


@pytest.mark.slow
def test_a_variant_that_fails_keeps_the_rest_and_says_how_to_go_on(real: Path) -> None:
    (real / "fakes.py").write_text(PLUGIN.replace('"""Do without rewards."""', "raise ValueError"))

    result = command("--methods", "lift,shift", "--seeds", "1", "--json")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        "go on with: alignkit compare small.toml -p fakes.py --methods lift,shift --seeds 1 --json"
    )
