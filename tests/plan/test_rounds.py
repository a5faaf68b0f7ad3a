"""Rounds: `[repeat]` unrolled into stages, wired from round to round, and refused where it would do nothing."""

from pathlib import Path

import pytest
from planning import Desk, make_desk, write_rows

from alignkit.compare.planning import plan_comparison
from alignkit.compare.variants import VariantRequest
from alignkit.errors import RecipeError
from alignkit.plan.planner import plan_recipe
from alignkit.recipe.fingerprint import stage_seed
from alignkit.recipe.recipe import recipe_as_json, recipe_of, recipe_of_json
from alignkit.run.reuse import run_again
from alignkit.show.planned import as_dict, show_plan

METHODS = '''
from alignkit import Policy, Preferences, Prompts, Scores, Settings, Stage, hookimpl, method


class PullSettings(Settings):
    beta: float = 0.1


class ShowSettings(Settings):
    """None."""


@method("ask")
def ask(settings: PullSettings, stage: Stage, *, policy: Policy, prompts: Prompts) -> Preferences:
    """Make pairs."""


@method("prefer-by", results=("accuracy",))
def prefer(
    settings: PullSettings, stage: Stage, *, policy: Policy, pairs: Preferences, reference: Policy | None = None
) -> Policy:
    """Learn pairs."""


@method("plain")
def plain(settings: PullSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    """Learn pairs without a start."""


@method("show", results=("reward {policies}",))
def show(settings: ShowSettings, stage: Stage, *, policies: tuple[Policy, ...]) -> Scores:
    """Measure."""


@hookimpl
def alignkit_methods():
    return [ask, prefer, plain, show]
'''

SOURCES = """seed = 3
[sources]
base = { policy = "model" }
demos = { demonstrations = "demos.jsonl" }
prompts = { prompts = "prompts.jsonl" }
[stage.first]
method = "tune"
"""
STAGES = """
[stage.pairs]
method = "ask"
[stage.align]
method = "prefer-by"
gates.accuracy.min = 0.6
[stage.after]
method = "show"
inputs.policies = ["first", "align"]
gates."reward align".min = 0.5
"""
REPEAT = """
[repeat]
stages = ["pairs", "align"]
rounds = 3
"""
ROUNDS = SOURCES + STAGES + REPEAT


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    desk = make_desk(tmp_path)
    (tmp_path / "more.py").write_text(METHODS, "utf-8")
    return desk


def planned(desk: Desk, text: str = ROUNDS, sets: dict[str, object] | None = None, **more: object):
    return desk.plan(text, sets, plugins=[desk.plugin, desk.folder / "more.py"], **more)


def problems(desk: Desk, text: str, sets: dict[str, object] | None = None) -> list[str]:
    return desk.problems(text, sets, plugins=[desk.plugin, desk.folder / "more.py"])


def wires(plan) -> dict[str, str]:
    return {
        stage.name: " ".join(f"{role}={'+'.join(names)}" for role, names in stage.inputs.items())
        for stage in plan.stages
    }


def test_each_round_starts_from_what_the_round_before_has_made(desk: Desk) -> None:
    assert wires(planned(desk)) == {
        "first": "policy=base demos=demos",
        "pairs-1": "policy=first prompts=prompts",
        "align-1": "policy=first pairs=pairs-1",
        "pairs-2": "policy=align-1 prompts=prompts",
        "align-2": "policy=align-1 pairs=pairs-2",
        "pairs-3": "policy=align-2 prompts=prompts",
        "align-3": "policy=align-2 pairs=pairs-3",
        "after": "policies=first+align-3",
    }


def test_the_name_of_a_stage_means_its_last_round(desk: Desk) -> None:
    plan = planned(desk, f"result = 'align'\n{ROUNDS}")

    assert [stage.name for stage in plan.stages if stage.wanted][-1] == "align-3"
    assert [stage.name for stage in planned(desk, until="align").stages if stage.wanted][-1] == "align-3"
    assert [stage.name for stage in planned(desk, until="align-1").stages if stage.wanted][-1] == "align-1"
    assert run_again(plan, ["align", "align-1"]) == ("align-3", "align-1")
    assert plan.stage("after").gates == {"reward align-3": {"min": 0.5}}
    assert plan.stage("align-2").gates == {"accuracy": {"min": 0.6}}


def test_a_star_means_all_rounds_so_far(desk: Desk) -> None:
    text = ROUNDS.replace('["first", "align"]', '["first", "align-*"]')
    text = text.replace('"prefer-by"\n', '"prefer-by"\ninputs.pairs = "pairs-*"\n')

    found = wires(planned(desk, text))

    assert found["after"] == "policies=first+align-1+align-2+align-3"
    assert [found[f"align-{number}"] for number in (1, 2, 3)] == [
        "policy=first pairs=pairs-1",
        "policy=align-1 pairs=pairs-1+pairs-2",
        "policy=align-2 pairs=pairs-1+pairs-2+pairs-3",
    ]


def test_a_later_stage_of_a_round_means_the_round_before_and_in_the_first_none(desk: Desk) -> None:
    text = ROUNDS.replace('"ask"\n', '"ask"\ninputs.policy = "align"\n')

    assert wires(planned(desk, text)) == wires(planned(desk))


def test_a_mix_weighs_the_rounds_that_its_names_mean(desk: Desk) -> None:
    mixed = ROUNDS.replace('"prefer-by"\n', '"prefer-by"\nmix.weights = { pairs = 3, other = 1 }\n')
    mixed = mixed.replace('"show"\n', '"show"\nmix.epochs = { "pairs-*" = 2 }\n')

    stages = recipe_of(desk.folder / "r.toml", mixed).stages

    assert [stages[f"align-{number}"]["mix"] for number in (1, 2, 3)] == [
        {"weights": {f"pairs-{number}": 3, "other": 1}} for number in (1, 2, 3)
    ]
    assert stages["after"]["mix"] == {"epochs": {"pairs-1": 2, "pairs-2": 2, "pairs-3": 2}}


def test_a_stage_before_the_repeat_is_the_same_in_all_rounds(desk: Desk) -> None:
    found = wires(planned(desk, ROUNDS.replace('"prefer-by"\n', '"prefer-by"\ninputs.policy = "first"\n')))

    assert [found[f"align-{number}"].split()[0] for number in (1, 2, 3)] == ["policy=first"] * 3


def test_rounds_differ_in_their_seeds_and_the_first_is_as_without_rounds(desk: Desk) -> None:
    alone, plan = planned(desk, SOURCES + STAGES), planned(desk)

    seeds = [plan.stage(f"align-{number}").seed for number in (1, 2, 3)]
    assert seeds[0] == alone.stage("align").seed == stage_seed(3, "align")
    assert len({*seeds}) == 3
    assert plan.stage("align-1").fingerprint == alone.stage("align").fingerprint
    own = planned(desk, ROUNDS.replace('"prefer-by"\n', '"prefer-by"\nseed = 7\n'))
    assert [own.stage(f"align-{number}").seed for number in (1, 2)] == [7, stage_seed(7, "align/round 2")]


def test_more_rounds_leave_those_before_as_they_were(desk: Desk) -> None:
    prints = {stage.name: stage.fingerprint for stage in planned(desk).stages}
    more = {stage.name: stage.fingerprint for stage in planned(desk, sets={"repeat.rounds": "4"}).stages}

    assert {name: more[name] for name in prints if name != "after"} == {
        name: found for name, found in prints.items() if name != "after"
    }
    assert more["align-4"] not in prints.values()


def test_what_is_said_of_a_stage_counts_for_all_rounds_and_of_a_round_for_it_alone(desk: Desk) -> None:
    text = ROUNDS + "[stage.align-2]\nprefer-by.beta = 0.2\n"
    plan = planned(desk, text, {"align-3.prefer-by.beta": "0.3", "align.prefer-by.beta": "0.4"})

    betas = [plan.stage(f"align-{number}").settings.model_dump()["beta"] for number in (1, 2, 3)]
    assert betas == [0.4, 0.2, 0.3]
    assert [stage.name for stage in plan.stages].count("align-2") == 1


def test_mistakes_stand_where_they_were_made_and_are_told_once(desk: Desk) -> None:
    wrong = ROUNDS.replace("accuracy.min", "acuracy.min")
    assert problems(desk, wrong) == [
        "r.toml:13: stage 'align-1': gates.acuracy: prefer-by reports no such result; did you mean 'accuracy'?"
    ]
    assert problems(desk, ROUNDS, {"align-2.prefer-by.beta": "x", "align.prefer-by.beta": "y"}) == [
        "--set align.prefer-by.beta: stage 'align-1': prefer-by.beta: must be a number, and is \"y\"",
        "--set align-2.prefer-by.beta: stage 'align-2': prefer-by.beta: must be a number, and is \"x\"",
    ]


def test_a_fixed_reference_is_what_the_first_round_started_from(desk: Desk) -> None:
    found = wires(planned(desk, ROUNDS + 'reference = "fixed"\n'))

    assert [found[f"align-{number}"] for number in (1, 2, 3)] == [
        "policy=first pairs=pairs-1",
        "policy=align-1 pairs=pairs-2 reference=first",
        "policy=align-2 pairs=pairs-3 reference=first",
    ]


def test_rounds_divide_the_rows_of_a_source(desk: Desk) -> None:
    write_rows(desk.folder / "prompts.jsonl", [{"prompt": f"number {i}?"} for i in range(300)])
    plan = planned(desk, ROUNDS + 'split = ["prompts"]\n')

    assert [plan.stage(f"pairs-{number}").inputs["prompts"] for number in (1, 2, 3)] == [
        ("prompts-1",),
        ("prompts-2",),
        ("prompts-3",),
    ]
    parts = [plan.sources[f"prompts-{number}"].artifact() for number in (1, 2, 3)]
    learnt = [[row["prompt"] for row in part.train()] for part in parts]
    whole = plan.sources["prompts"].artifact()
    assert sorted(prompt for several in learnt for prompt in several) == sorted(row["prompt"] for row in whole.train())
    assert min(map(len, learnt)) > 70
    assert all([*part.held_out()] == [*whole.held_out()] for part in parts)
    assert len({plan.sources[f"prompts-{number}"].fingerprint for number in (1, 2, 3)}) == 3


def test_one_round_divides_nothing(desk: Desk) -> None:
    plan = planned(desk, ROUNDS + 'split = ["prompts"]\n', {"repeat.rounds": 1})

    assert wires(plan)["pairs-1"] == "policy=first prompts=prompts"
    assert [*plan.sources] == ["base", "demos", "prompts"]


def test_several_repeats_have_names(desk: Desk) -> None:
    more = '[stage.third]\nmethod = "tune"\n[repeat.early]\nstages = ["pairs", "align"]\nrounds = 2\n'
    plan = planned(desk, SOURCES + STAGES + more + '[repeat.late]\nstages = ["third"]\nrounds = 2\n')

    assert [stage.name for stage in plan.stages] == [
        "first", "pairs-1", "align-1", "pairs-2", "align-2", "after", "third-1", "third-2"
    ]  # fmt: skip
    assert wires(plan)["third-2"] == "policy=third-1 demos=demos"


MISTAKES = [
    ("rounds = 3", "rounds = 0", "r.toml:21: repeat.rounds: must be greater than or equal to 1, and is 0"),
    ("rounds = 3", "", "r.toml:19: repeat.rounds: must be given"),
    ("rounds = 3", "rounds = 3\nround = 2", "r.toml:22: repeat.round: unknown setting; did you mean 'rounds'?"),
    ('["pairs", "align"]', "[]", 'r.toml:20: repeat: it names no stage; write stages = ["..."]'),
    ('["pairs", "align"]', '["pairs", "algn"]', "r.toml:20: repeat: there is no stage 'algn'; did you mean 'align'?"),
    ('["pairs", "align"]', '["align", "align"]', "r.toml:20: repeat: stage 'align' is named twice; name it once"),
    (
        '["pairs", "align"]',
        '["first", "align"]',
        "r.toml:20: repeat: stage 'pairs' stands between 'first' and 'align'; name it, too, or move it",
    ),
    (
        '["pairs", "align"]',
        '["pairs"]',
        "r.toml:20: repeat: no stage of a round takes what the round before has made, so all rounds are alike; let one "
        "take its policy, or leave the repeat out",
    ),
    (
        "rounds = 3",
        'rounds = 3\nsplit = ["prompt"]',
        "r.toml:22: repeat: there is no source 'prompt'; did you mean 'prompts'?",
    ),
    (
        "rounds = 3",
        'rounds = 3\nsplit = ["base"]',
        "r.toml:22: repeat: source 'base' has no rows to divide; name sources of rows",
    ),
    (
        "rounds = 3",
        'rounds = 3\nsplit = ["demos"]',
        "r.toml:22: repeat: no stage of a round takes 'demos'; these are taken: first, pairs-1, prompts",
    ),
    (
        '"prefer-by"\ngates.accuracy.min = 0.6',
        '"plain"',
        "r.toml:21: repeat: reference = \"fixed\" does nothing: no input 'reference' is in ask, plain; leave it out",
    ),
    (
        '"prefer-by"',
        '"prefer-by"\ninputs.policy = "first"',
        'r.toml:23: repeat: reference = "fixed" does nothing: every round starts from the same policy; leave it out',
    ),
    (
        "[repeat]",
        "[stage.align-4]\nseed = 1\n[repeat]",
        "r.toml:19: stage 'align-4' would be a round of 'align', of which there are 3; raise rounds, or rename it",
    ),
    (
        "[stage.first]",
        'align-2 = { prompts = "prompts.jsonl" }\n[stage.first]',
        "r.toml:6: 'align-2' names a round of 'align' and a source; rename the source",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_a_repeat_that_makes_no_sense_is_refused(desk: Desk, old: str, new: str, message: str) -> None:
    fixed = 'reference = "fixed"\n' if "fixed" in message else ""

    assert problems(desk, ROUNDS.replace(old, new) + fixed)[0] == message


def test_a_repeat_is_a_table(desk: Desk) -> None:
    assert problems(desk, "repeat = 3\n" + SOURCES + STAGES) == ["r.toml:1: 'repeat' must be a table; write [repeat]"]


def test_a_stage_repeats_once(desk: Desk) -> None:
    text = SOURCES + STAGES + REPEAT.replace("[repeat]", "[repeat.a]") + REPEAT.replace("[repeat]", "[repeat.b]")

    assert problems(desk, text)[0] == (
        "r.toml:24: repeat.b: stage 'align' belongs to repeat.a already; name it in one of them"
    )


def test_a_recipe_with_rounds_is_the_same_for_another_process(desk: Desk) -> None:
    plan = planned(desk, ROUNDS + 'reference = "fixed"\nsplit = ["prompts"]\n')

    again = plan_recipe(recipe_of_json(recipe_as_json(plan.recipe)), plan.plugins, runs=desk.folder / "runs")

    assert [(stage.name, stage.fingerprint) for stage in again.stages] == [
        (stage.name, stage.fingerprint) for stage in plan.stages
    ]


def test_a_reference_that_nothing_is_compared_with_is_refused(desk: Desk) -> None:
    text = SOURCES.replace("[sources]", '[sources]\ngold = { reward = "function:reviews-gold" }')
    text += '[stage.align]\nmethod = "grpo"\ninputs.reference = "base"\n'

    assert wires(planned(desk, text))["align"] == "policy=first rewards=gold prompts=prompts reference=base"
    assert problems(desk, text, {"align.grpo.kl.coef": "0"}) == [
        "r.toml:11: stage 'align': grpo compares its policy with none where kl.coef is 0, so 'base' as reference does "
        "nothing; raise grpo.kl.coef, or leave it out"
    ]
    fixed = text.replace('inputs.reference = "base"', '[repeat]\nstages = ["align"]\nrounds = 2\nreference = "fixed"')
    assert problems(desk, fixed, {"align.grpo.kl.coef": "0"}) == [
        "r.toml:14: stage 'align-2': grpo compares its policy with none where kl.coef is 0, so 'first' as reference "
        'does nothing; raise grpo.kl.coef, or set repeat.reference = "moving"'
    ]


def test_bounds_of_costs_are_those_of_their_rounds(desk: Desk) -> None:
    text = (
        SOURCES.replace("[sources]", '[sources]\ngold = { reward = "function:reviews-gold" }')
        + """
[stage.harm]
method = "score"
[stage.align]
method = "grpo"
inputs.rewards = ["gold"]
constraints.harm.max = 0.1
[repeat]
stages = ["harm", "align"]
rounds = 2
"""
    )
    plan = planned(desk, text.replace("prompts = {", 'given = { preferences = "pairs.jsonl" }\nprompts = {'))

    assert [[*plan.stage(f"align-{number}").constraints] for number in (1, 2)] == [["harm-1"], ["harm-2"]]


def compared(desk: Desk, **asked: object):
    gold = '[sources]\ngold = { reward = "function:reviews-gold" }\n'
    text = asked.pop("text", ROUNDS.replace("[sources]\n", gold) + 'split = ["prompts"]\n')
    (desk.folder / "r.toml").write_text(text, "utf-8")
    files = [desk.plugin, desk.folder / "more.py"]
    return plan_comparison(
        desk.folder / "r.toml", VariantRequest(**asked), runs=desk.folder / "runs", plugins=files, set={"seed": 5}
    )


MIXED = SOURCES.replace(
    "[stage.first]",
    """more = { demonstrations = "demos.jsonl", held_out = 0.1 }
[repeat]
stages = ["again"]
rounds = 2
split = ["demos"]
[stage.first]
inputs.demos = "demos"
""",
)
MIXED += """
[stage.again]
method = "sft"
mix.weights = { demos = 3, more = 1 }
[stage.after]
method = "evaluate"
inputs.rewards = ["gold"]
[sources.gold]
reward = "function:reviews-gold"
"""


def test_a_comparison_varies_a_mix_in_all_of_its_rounds(desk: Desk) -> None:
    made = compared(desk, text=MIXED, stage="again", vary={"again.mix.weights.more": [1, 2]}, seeds=2)

    mixes = [made.plan.stage(name).mix for one in made.contenders for own in one.own for name in own.values()]
    parts = [{"demos-1": 3, "more": more} for more in (1, 2)], [{"demos-2": 3, "more": more} for more in (1, 2)]
    assert [mix.weights for mix in mixes if mix] == [part[more] for more in (0, 0, 1, 1) for part in parts]


def test_a_comparison_varies_a_stage_in_all_of_its_rounds(desk: Desk) -> None:
    found = compared(desk, vary={"align.prefer-by.beta": ["0.1", "0.3"]}, seeds=2)

    own, other = found.contenders
    assert (found.stage, found.start) == ("align", "first")
    assert own.stages[0] == own.own[0]["align-3"] == "align-prefer-by-beta-0-1-s1"
    assert list(own.own[0]) == ["pairs-1", "align-1", "pairs-2", "align-2", "pairs-3", "align-3"]
    made = {stage.name: stage for stage in found.plan.stages}
    assert [made[name].settings.model_dump()["beta"] for name in other.own[1].values()] == [0.1, 0.3] * 3
    for contender in found.contenders:
        for names in contender.own:
            assert made[names["align-1"]].inputs == {"policy": ("first",), "pairs": (names["pairs-1"],)}
            assert made[names["pairs-2"]].inputs == {"policy": (names["align-1"],), "prompts": ("prompts-2",)}
            assert made[names["align-3"]].inputs == {"policy": (names["align-2"],), "pairs": (names["pairs-3"],)}
    seeds = [[made[name].seed for name in one.own[k].values()] for one in found.contenders for k in (0, 1)]
    assert seeds[0] == seeds[2] != seeds[1] == seeds[3]
    assert len({*seeds[0], *seeds[1]}) == 12


def test_a_comparison_varies_the_number_of_rounds(desk: Desk) -> None:
    found = compared(desk, vary={"repeat.rounds": ["1", "2", "3"]})

    made = {stage.name: stage for stage in found.plan.stages}
    assert [one.variant.label for one in found.contenders] == [
        "prefer-by repeat.rounds=1",
        "prefer-by repeat.rounds=2",
        "prefer-by repeat.rounds=3",
    ]
    asked = [
        [made[one.own[0][f"pairs-{n}"]].inputs["prompts"][0] for n in range(1, len(one.own[0]) // 2 + 1)]
        for one in found.contenders
    ]
    assert asked[0] == ["prompts"]
    assert asked[2] == ["prompts-1", "prompts-2", "prompts-3"]
    parts = [found.plan.sources[name].said()["part"] for several in asked for name in several]
    assert parts == [None, [1, 2], [2, 2], [1, 3], [2, 3], [3, 3]]
    assert found.contenders[2].stages == ("align-3",)


def test_one_round_alone_may_be_compared(desk: Desk) -> None:
    found = compared(desk, stage="align-2", vary={"align-2.prefer-by.beta": ["0.1", "0.3"]})

    assert found.start == "align-1"
    assert [list(one.own[0]) for one in found.contenders] == [["align-2"], ["align-2"]]


def test_twins_among_rounds_are_refused(desk: Desk) -> None:
    with pytest.raises(RecipeError, match=r"stage 'align': the variants .* are the same"):
        compared(desk, vary={"align.prefer-by.beta": ["0.1", "0.10"]})


def test_a_plan_tells_its_rounds(desk: Desk) -> None:
    plan = planned(desk, ROUNDS + "[stage.align-3]\nprefer-by.beta = 0.2\n[stage.x]\nmethod = 'show'\n")

    told = as_dict(plan)["stages"]
    assert told["align-2"]["round"] == {"stage": "align", "number": 2, "of": 3}
    assert "round" not in told["first"]
    lines = show_plan(planned(desk, ROUNDS + "[stage.align-3]\nprefer-by.beta = 0.2\n"), {}, {}, None)
    assert "align-2  round: 2 of 3" in lines
    assert "align-2  set: as align-1" not in lines
    assert "align-3  set: prefer-by.beta = 0.2" in lines
