"""Judges: sources of every scheme, rules of two forms, and a judge that is a reward."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from opened import open_judge, open_reward
from planning import Desk, make_desk

from alignkit import (
    Answer,
    Judge,
    JudgeClient,
    JudgeError,
    JudgeReward,
    PluginError,
    Question,
    RecipeError,
    Settings,
    Verdict,
    judge,
    judge_scheme,
)
from alignkit.contract.judges import by_comparing, by_rating

JUDGES = '''
from alignkit import (
    Judge, JudgeClient, Policy, Preferences, Reward, Settings, Stage, Verdict, hookimpl, judge, judge_scheme, method,
)


class Sharp(Settings):
    sharpness: float = 1.0


class House(Settings):
    url: str = ""
    key_env: str | None = None
    patience: int = 1


class Own(Settings):
    pass


@judge("shorter")
def shorter(questions, settings: Sharp) -> list[float]:
    """Prefer the shorter answer."""
    return [float(len(question.first.text) < len(question.second.text)) for question in questions]


@judge_scheme("house", free=("patience",))
def house(judge: Judge, settings: House, cache) -> JudgeClient:
    """Ask the house."""
    return JudgeClient(
        lambda questions: [Verdict(0.5)] * len(questions), lambda answers, principle: [None] * len(answers)
    )


@judge_scheme("own", policy=True)
def own(judge: Judge, settings: Own, cache) -> JudgeClient:
    """Ask a policy."""


@method("opinion")
def opinion(settings: Own, stage: Stage, *, judge: Judge) -> Preferences:
    """Judge."""


@method("raise")
def raising(settings: Own, stage: Stage, *, reward: Reward) -> Preferences:
    """Raise."""


@hookimpl
def alignkit_methods():
    return [opinion, raising]


@hookimpl
def alignkit_judges():
    return [shorter, house, own]
'''


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    desk = make_desk(tmp_path)
    desk.plugin.write_text(JUDGES, "utf-8")
    return desk


def source(desk: Desk, lines: str, method: str = "opinion") -> Any:
    return desk.plan(f"[sources.critic]\n{lines}\n[stage.judged]\nmethod = '{method}'\n").sources["critic"]


def test_a_number_of_the_command_line_is_text_where_text_is_wanted(desk: Desk) -> None:
    text = JUDGES.replace("class Own(Settings):", "class Own(Settings):\n    mark: str = 'x'")
    rated = "from alignkit import reward\n@reward('loud')\ndef loud(answers, settings: Own) -> list[float]: ...\n"
    offered = rated + "@hookimpl\ndef alignkit_rewards():\n    return [loud]\n"
    desk.plugin.write_text(text + offered, "utf-8")
    recipe = "[sources.one]\n{}\n[stage.judged]\nmethod = '{}'\n"

    made = [
        desk.plan(recipe.format(lines, method), {"one.settings.mark": "5"}).sources["one"].artifact()
        for lines, method in (("reward = 'function:loud'", "raise"), ("judge = 'rule:loud'", "opinion"))
    ]

    assert made[0].settings == {"mark": "5"}
    assert made[1].options == {"settings": {"mark": "5"}}


def asked(*texts: str) -> list[Answer]:
    return [Answer("Why?", text, True) for text in texts]


@pytest.mark.parametrize(
    ("lines", "facts"),
    [
        ("judge = 'rule:shorter'", {"address": "rule:shorter", "options": {"settings": {}}}),
        ("judge = 'rule:reviews-gold'", {"address": "rule:reviews-gold", "options": {"settings": {}}}),
        (
            "judge = 'house:big'\nurl = 'u'\nkey_env = 'KEY'",
            {"address": "house:big", "options": {"url": "u", "key_env": "KEY", "patience": 1}},
        ),
        ("judge = 'own:builtin:tiny'", {"address": "own:builtin:tiny", "options": {}}),
        ("judge = 'own:model'", {"address": "own:model", "options": {}}),
    ],
)
def test_a_judge_is_a_source_of_any_scheme(desk: Desk, lines: str, facts: dict[str, Any]) -> None:
    made = source(desk, lines).artifact()

    assert isinstance(made, Judge)
    assert made.model_dump(include={"address", "options"}) == facts


def test_a_policy_that_judges_lies_where_any_policy_does(desk: Desk) -> None:
    here, built_in = source(desk, "judge = 'own:model'"), source(desk, "judge = 'own:builtin:tiny'")

    assert (here.artifact().path, built_in.fetched) == (desk.folder / "model", True)


def test_a_judge_that_rates_is_a_reward(desk: Desk) -> None:
    made = source(desk, "reward = 'judge:house:big'\nurl = 'u'\nweight = 0.5", "raise").artifact()

    assert isinstance(made, JudgeReward)
    assert (made.weight, made.judge.address, made.judge.options["url"]) == (0.5, "house:big", "u")


def test_a_judge_of_the_hub_has_a_commit_to_be_found(desk: Desk) -> None:
    found = source(desk, "judge = 'own:hf:a/b'")

    assert (found.fingerprint, found.address, found.shown) == (None, "hf:a/b", "own:hf:a/b")


def test_what_counts_for_a_judge_is_all_that_changes_its_verdicts(desk: Desk) -> None:
    lines = ["", "patience = 9", "url = 'v'"]
    base, patient, elsewhere = (source(desk, f"judge = 'house:big'\n{line}").fingerprint for line in lines)
    sharp = source(desk, "judge = 'rule:shorter'\nsettings.sharpness = 2").fingerprint
    before = source(desk, "judge = 'own:model'").fingerprint
    (desk.folder / "model" / "model.safetensors").write_bytes(b"others")

    assert base == patient
    assert len({base, elsewhere, sharp, source(desk, "judge = 'rule:shorter'").fingerprint}) == 4
    assert source(desk, "judge = 'own:model'").fingerprint != before


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            "judge = 'rule:shortr'",
            "r.toml:2: source 'critic': no plugin offers a rule 'shortr'; did you mean 'shorter'?",
        ),
        (
            "judge = 'huose:x'",
            "r.toml:2: source 'critic': no plugin offers a judge scheme 'huose'; did you mean 'house'?",
        ),
        (
            "judge = 'openai:x'",
            "r.toml:2: source 'critic': no plugin offers judges of the scheme 'openai'; pip install alignkit-rlaif",
        ),
        ("judge = 'house'", "r.toml:2: source 'critic': 'house' is no judge's address; write SCHEME:NAME"),
        ("judge = 'house:'", "r.toml:2: source 'critic': the judge has no name; write house:NAME"),
        (
            "judge = 'own:nowhere'",
            "r.toml:2: source 'critic': there is no 'nowhere'; it was looked for as FOLDER/nowhere",
        ),
        ("judge = 'house:x'\nurk = 'u'", "r.toml:3: source 'critic': urk: unknown setting; did you mean 'url'?"),
        (
            "judge = 'rule:shorter'\nsettings.x = 1",
            "r.toml:3: source 'critic': settings.x: unknown setting; there are sharpness",
        ),
        (
            "reward = 'judge:rule:shorter'",
            "r.toml:2: source 'critic': the rule 'shorter' compares, and rates nothing; take one that rates",
        ),
        (
            "judge = 'house:x'\nkey_env = 'sk-123'",
            "r.toml:3: source 'critic': key_env must be the name of an environment variable; a key itself never stands"
            " in a recipe",
        ),
    ],
)
def test_a_wrong_judge_is_refused(desk: Desk, lines: str, problem: str) -> None:
    method = "raise" if lines.startswith("reward") else "opinion"

    assert desk.problems(f"[sources.critic]\n{lines}\n[stage.judged]\nmethod = '{method}'\n") == [problem]


@pytest.mark.parametrize(
    ("address", "what", "remedy"),
    [
        ("rule:shorter", "rule 'shorter' is", 'say whose, as in judge = "rule:fakes:shorter"'),
        (
            "house:x",
            "judges of the scheme 'house' are",
            "uninstall one of them, or name the packages to load, with commas between, in ALIGNKIT_PLUGINS",
        ),
    ],
)
def test_two_offers_of_one_judge_clash(desk: Desk, address: str, what: str, remedy: str) -> None:
    other = desk.folder / "others.py"
    other.write_text(JUDGES.split("@hookimpl")[0] + "@hookimpl\ndef alignkit_judges():\n    return [shorter, house]\n")
    text = f"[sources.critic]\njudge = '{address}'\n[stage.judged]\nmethod = 'opinion'\n"

    assert desk.problems(text, plugins=[desk.plugin, other]) == [
        f"r.toml:2: source 'critic': {what} offered by FOLDER/fakes.py and by FOLDER/others.py; {remedy}"
    ]


def test_a_recipe_says_whose_rule_it_means(desk: Desk) -> None:
    other = desk.folder / "others.py"
    other.write_text(JUDGES.split("@hookimpl")[0] + "@hookimpl\ndef alignkit_judges():\n    return [shorter]\n")
    text = "[sources.critic]\njudge = 'rule:others:shorter'\n[stage.judged]\nmethod = 'opinion'\n"

    assert desk.plan(text, plugins=[desk.plugin, other]).sources["critic"].address == "rule:others:shorter"


class Plain(Settings):
    pass


def test_a_rule_must_have_two_parameters() -> None:
    with pytest.raises(PluginError) as refusal:

        @judge("odd")
        def odd(questions: Sequence[Question]) -> list[float]: ...

    assert refusal.value.problem == (
        "judge 'odd' is not of the form f(questions, settings: SomeSettings) -> list[float]"
    )


@pytest.mark.parametrize("name", ["odd", "rule"])
def test_a_scheme_must_have_three_parameters_and_another_name_than_rule(name: str) -> None:
    def named(judge: Judge, settings: Plain, cache: Path | None) -> JudgeClient: ...

    def short(judge: Judge, settings: Plain) -> JudgeClient: ...

    wrong: Any = named if name == "rule" else short
    with pytest.raises(PluginError) as refusal:
        judge_scheme(name)(wrong)

    assert refusal.value.problem == (
        f"judge scheme {name!r} is not of the form f(judge, settings: SomeSettings, cache) -> JudgeClient"
    )


def test_the_better_rated_answer_is_preferred() -> None:
    opened = by_rating(lambda answers: [float(answer.text) for answer in answers], "critic")
    one, two, odd = asked("1", "2", "nan")

    verdicts = opened.compare([Question(one, two), Question(two, one), Question(one, one), Question(one, odd)])

    assert verdicts == [Verdict(0.0), Verdict(1.0), Verdict(0.5), Verdict(None)]


def test_a_rule_without_an_opinion_gives_none() -> None:
    (verdict,) = by_comparing(lambda questions: [float("nan")], "critic").compare([Question(*asked("a", "b"))])

    assert verdict == Verdict(None)


ONE_EACH = "it must return one number for each answer"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([2.0], "judge 'critic': the rule says 2, which is no probability; it must return numbers from 0 to 1"),
        ([], f"judge 'critic': the rule gave 0 numbers where 1 were asked for; {ONE_EACH}"),
        ([None], f"judge 'critic': the rule gave None where a number was asked for; {ONE_EACH}"),
    ],
)
def test_a_rule_that_gives_something_else_is_refused(given: Any, problem: str) -> None:
    with pytest.raises(PluginError) as refusal:
        by_comparing(lambda questions: given, "critic").compare([Question(*asked("a", "b"))])

    assert str(refusal.value) == problem


def opened_from(desk: Desk, address: str) -> JudgeClient:
    return open_judge(Judge(name="critic", fingerprint="0", path=Path(), address=address), [desk.plugin])


def test_a_rule_is_opened_by_its_name(desk: Desk) -> None:
    opened = opened_from(desk, "rule:shorter")

    assert opened.compare([Question(*asked("a", "bb")), Question(*asked("aa", "b"))]) == [Verdict(1.0), Verdict(0.0)]


def test_a_scheme_is_opened_by_its_name(desk: Desk) -> None:
    assert opened_from(desk, "house:big").compare([Question(*asked("a", "b"))]) == [Verdict(0.5)]


def test_the_gold_score_is_a_judge_and_a_reward() -> None:
    critic = Judge(name="critic", fingerprint="0", path=Path(), address="rule:reviews-gold")
    answers = [
        Answer("Tell me about the tablet by Zelco.", text, True)
        for text in (" The casing was reliable and the software was lovely.", " Casing the was was.")
    ]

    assert open_judge(critic).compare([Question(*answers)]) == [Verdict(1.0)]
    rated = open_reward(JudgeReward(name="critic", fingerprint="0", path=Path(), judge=critic))(answers)
    assert rated[0] > rated[1]


def test_a_judge_that_rates_nothing_it_is_asked_stops(desk: Desk) -> None:
    critic = Judge(name="critic", fingerprint="0", path=Path(), address="house:big")
    score = open_reward(JudgeReward(name="critic", fingerprint="0", path=Path(), judge=critic), [desk.plugin])

    with pytest.raises(JudgeError) as refusal:
        score(asked("a", "b"))

    assert (str(refusal.value), refusal.value.status) == (
        "sources.critic: none of 2 answers got a valid rating; take a judge that can follow its instructions",
        69,
    )


def test_a_judge_that_only_compares_is_no_reward(desk: Desk) -> None:
    critic = Judge(name="critic", fingerprint="0", path=Path(), address="rule:shorter")

    with pytest.raises(RecipeError) as refusal:
        open_reward(JudgeReward(name="critic", fingerprint="0", path=Path(), judge=critic), [desk.plugin])

    assert refusal.value.problem == "the judge 'rule:shorter' compares, and rates nothing"
