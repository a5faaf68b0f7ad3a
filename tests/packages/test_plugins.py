"""Plugins: what packages offer is found, and one that is broken is named and stops nobody."""

import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit import Text, run_recipe
from alignkit.errors import PluginError, RecipeError
from alignkit.plan.schema import recipe_schema
from alignkit.plugins import BUILT_IN, Plugins, load_plugins
from alignkit.show.offered import list_methods

GOOD = '''
from alignkit import Policy, Settings, Stage, hookimpl, method


class None_(Settings):
    pass


@method("{name}")
def function(settings: None_, stage: Stage, *, policy: Policy) -> Policy:
    """Do nothing."""
    return policy


@hookimpl
def alignkit_methods():
    return [function]
'''

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package with an entry point where Python finds it, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("ALIGNKIT_PLUGINS", raising=False)

    def put(package: str, code: str, version: str = "1.0", point: str = "", needs: str = "") -> str:
        module = f"plugin_{package.replace('-', '_')}_{tmp_path.name}"
        info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n{needs}")
        (info / "entry_points.txt").write_text(f"[alignkit]\n{point or package} = {module}\n")
        (tmp_path / f"{module}.py").write_text(code)
        return module

    return put


def broken(plugins: Plugins) -> dict[str, str]:
    return {str(one.origin): one.reason for one in plugins.broken if one.origin.plugin not in BUILT_IN}


def test_built_in_methods_come_through_the_same_hook() -> None:
    plugins = load_plugins()

    assert {"clm", "sft", "reward", "ppo", "evaluate"} <= set(plugins.methods)
    assert {str(plugins.origins[f"method:{name}"]).split()[0] for name in ("clm", "ppo")} == {"alignkit"}
    assert "reviews-gold" in plugins.rewards


def test_an_installed_package_offers_its_methods(install: Install) -> None:
    install("alignkit-good", GOOD.format(name="good"), version="1.2")

    plugins = load_plugins()

    assert plugins.method("good").summary == "Do nothing."
    assert str(plugins.origins["method:good"]) == "alignkit-good 1.2"


BROKEN = [
    ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ("def (", "SyntaxError: invalid syntax (MODULE.py, line 1)"),
    ("raise SystemExit('bye')", "SystemExit: bye"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    (
        "from alignkit import hookimpl\n@hookimpl\ndef alignkit_methods():\n    raise RuntimeError('not today')",
        "RuntimeError: not today",
    ),
    (
        "from alignkit import hookimpl\n@hookimpl\ndef alignkit_methods():\n    pass",
        "alignkit_methods returned NoneType, not a list",
    ),
    (
        "from alignkit import hookimpl\n@hookimpl\ndef alignkit_methods():\n    return ['x']",
        "alignkit_methods offers 'x', which is no Method; put @method above it",
    ),
    (
        "from alignkit import hookimpl\n@hookimpl\ndef alignkit_rewards():\n    return ['x']",
        "alignkit_rewards offers 'x', which is no RewardFunction; put @reward above it",
    ),
    (
        "from alignkit import hookimpl\n@hookimpl\ndef alignkit_judges():\n    return ['x']",
        "alignkit_judges offers 'x', which is no JudgeFunction or JudgeScheme; put @judge or @judge_scheme above it",
    ),
    (
        "from alignkit import hookimpl\n@hookimpl\ndef alignkit_method():\n    return []",
        "there is no hook 'alignkit_method'; did you mean 'alignkit_methods'?",
    ),
    (
        "from alignkit import hookimpl\n@hookimpl\ndef zebra():\n    return []",
        "there is no hook 'zebra'; the hooks are alignkit_methods, alignkit_rewards, alignkit_judges, "
        "alignkit_trackers, alignkit_event",
    ),
    ("def alignkit_methods():\n    return []", "alignkit_methods is not marked as a hook; put @hookimpl above it"),
    (
        "from alignkit import method\n@method('odd')\ndef f(x): ...",
        "MODULE.f: method 'odd' cannot be read: its first two parameters must be the settings and the stage; "
        "`alignkit new NAME` writes one that can",
    ),
]


@pytest.mark.parametrize(("code", "reason"), BROKEN)
def test_a_broken_package_is_named_and_stops_nobody(install: Install, code: str, reason: str) -> None:
    module = install("alignkit-broken", code, version="0.3")
    install("alignkit-good", GOOD.format(name="good"))

    plugins = load_plugins()

    assert broken(plugins) == {"alignkit-broken 0.3": reason.replace("MODULE", module)}
    assert {"good", "ppo"} <= set(plugins.methods)
    assert not any(plugin == "alignkit-broken:alignkit-broken" for plugin, _ in plugins.hooks.list_name_plugin())


@pytest.mark.parametrize(("needs", "fits"), [(">=99", False), ("<99,>=0.1", True), ("", True)])
def test_a_package_for_another_version_is_named(install: Install, needs: str, fits: bool) -> None:
    install(
        "alignkit-late",
        GOOD.replace("{name}", "late"),
        needs=f"Requires-Dist: alignkit-dpo>=99\nRequires-Dist: alignkit{needs}\n",
    )

    reasons = broken(load_plugins())

    version = importlib.metadata.version("alignkit")
    late = {"alignkit-late 1.0": f"it needs alignkit >=99, and this is {version}; update one of them"}
    assert reasons == ({} if fits else late)


def test_a_hook_with_a_wrong_argument_is_broken(install: Install) -> None:
    code = "from alignkit import hookimpl\n@hookimpl\ndef alignkit_event(evnt):\n    pass"
    install("alignkit-broken", code)

    reason = broken(load_plugins())["alignkit-broken 1.0"]

    assert reason.startswith("PluginValidationError: Plugin 'alignkit-broken:alignkit-broken' for hook 'alignkit_event")


def test_a_broken_package_no_longer_observes(install: Install) -> None:
    observe = "from alignkit import hookimpl\n@hookimpl\ndef alignkit_event(event):\n    1 / 0\n"
    code = f"{observe}@hookimpl\ndef zebra():\n    pass"
    install("alignkit-broken", code)

    plugins = load_plugins()

    assert plugins.hooks.hook.alignkit_event.get_hookimpls() == []


def test_two_packages_with_one_name_clash_only_where_it_is_asked_for(install: Install) -> None:
    install("alignkit-one", GOOD.format(name="same"), version="1.1")
    install("alignkit-two", GOOD.format(name="same"), version="2.2")

    plugins = load_plugins()

    assert plugins.method("ppo").name == "ppo"
    with pytest.raises(PluginError) as raised:
        plugins.method("same")
    assert str(raised.value) == (
        "method 'same' is offered by alignkit-one 1.1 and by alignkit-two 2.2; "
        'say whose, as in method = "alignkit-one:same"'
    )
    for package in ("alignkit-one", "alignkit-two"):
        chosen = plugins.method(f"{package}:same")
        assert (chosen.name, chosen.address) == ("same", f"{package}:same")
        assert plugins.origins[f"method:{chosen.address}"].package == package


PRAISE = """
from alignkit import Answer, Reward, Settings, Stage, Text, hookimpl, method, reward

class Nothing(Settings):
    pass

@reward("praise")
def praise(answer: Answer, settings: Nothing) -> float:
    \"\"\"Praise.\"\"\"
    return {score}

@method("{method}")
def use(settings: Nothing, stage: Stage, *, reward: Reward) -> Text:
    \"\"\"Use a reward.\"\"\"
    return stage.save_rows(Text, [dict(text=str(stage.open_reward(reward)([Answer("a", "b", True)])))])

@hookimpl
def alignkit_rewards():
    return [praise]

@hookimpl
def alignkit_methods():
    return [use]
"""


def test_a_recipe_says_whose_reward_it_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    for name, score in (("one", 1.0), ("two", 2.0)):
        (tmp_path / f"{name}.py").write_text(PRAISE.format(score=score, method=f"use-{name}"))
    plugins = [tmp_path / "one.py", tmp_path / "two.py"]
    recipe = tmp_path / "r.toml"
    recipe.write_text('[sources]\nmark = { reward = "function:praise" }\n[stage.use-one]\n')

    with pytest.raises(PluginError, match=r"offered by .*one.py and by .*two.py") as refusal:
        run_recipe(recipe, plugins=plugins, runs=tmp_path / "runs", inline=True)
    assert refusal.value.remedy == 'say whose, as in reward = "function:one:praise"'

    recipe.write_text(recipe.read_text().replace("function:", "function:two:"))
    run = run_recipe(recipe, plugins=plugins, runs=tmp_path / "runs", inline=True)
    made = run.artifact("use-one")
    assert isinstance(made, Text)
    assert [row["text"] for row in (*made.train(), *made.held_out())] == ["2.0"]


def test_a_name_of_alignkits_own_is_not_taken_from_it(install: Install) -> None:
    install("alignkit-thief", GOOD.format(name="ppo"), version="0.3")

    plugins = load_plugins()

    assert plugins.method("ppo").module == "alignkit.methods.ppo"
    assert plugins.method("alignkit-thief:ppo").summary == "Do nothing."
    assert (
        "not taken: the method 'ppo' of alignkit-thief 0.3, since alignkit has one of that name; "
        'a recipe gets it by method = "alignkit-thief:ppo"'
    ) in " ".join(" ".join(list_methods(plugins, None)).split())
    assert {str(origin) for origin in plugins.shadowed["method:ppo"]} == {"alignkit-thief 0.3"}


def test_an_unknown_address_is_advised(install: Install) -> None:
    install("alignkit-good", GOOD.format(name="good"))

    with pytest.raises(RecipeError) as raised:
        load_plugins().method("alignkit-good:goood")

    assert str(raised.value) == "no plugin offers a method 'alignkit-good:goood'; did you mean 'alignkit-good:good'?"


SETTING = GOOD.replace("{name}", "odd").replace("    pass\n", "    f: {annotation}\n", 1)


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (
            "__import__('typing').Callable[[int], int] = abs",
            "Cannot generate a JsonSchema for core_schema.CallableSchema",
        ),
        ("__import__('pathlib').Path = __import__('pathlib').Path('.')", "f: input should be a valid string"),
        ("__import__('typing').Any = lambda x: x", "Unable to serialize unknown type: <class 'function'>"),
        ("float = float('nan')", "f: input should be a finite number"),
    ],
)
def test_a_setting_that_cannot_stand_in_a_recipe_breaks_its_own_package(
    install: Install, annotation: str, reason: str
) -> None:
    install("alignkit-odd", SETTING.replace("{annotation}", annotation))
    install("alignkit-good", GOOD.format(name="good"))

    plugins = load_plugins()

    assert broken(plugins) == {
        "alignkit-odd 1.0": f"the settings of its method 'odd' cannot stand in a recipe: {reason}"
    }
    assert "good" in recipe_schema(plugins)["properties"]["stage"]["additionalProperties"]["properties"]

    quick = load_plugins(examined=False)
    assert broken(quick) == {}
    assert quick.method("good").name == "good"
    with pytest.raises(PluginError, match="the settings of its method 'odd' cannot stand in a recipe"):
        quick.method("odd")


@pytest.mark.parametrize(
    "annotation", ["int", "'None_ | None' = None", "tuple[int, ...] = (1, 2)", "dict[str, int] = {}"]
)
def test_other_settings_may_stand_in_a_recipe(install: Install, annotation: str) -> None:
    install("alignkit-odd", SETTING.replace("{annotation}", annotation))

    plugins = load_plugins()

    assert broken(plugins) == {}
    assert "odd" in plugins.methods


FORM = """
from alignkit import hookimpl, judge, judge_scheme, method, reward, Policy, Settings, Stage

class None_(Settings):
    pass

@{kind}({name!r})
{head}
    {body}
"""
HEADS = {
    "method": "def f(settings: None_, stage: Stage, *, policy: Policy) -> Policy:",
    "reward": "def f(answers, settings: None_) -> list:",
    "judge": "def f(questions, settings: None_) -> list:",
    "judge_scheme": "def f(judge, settings: None_, cache) -> object:",
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", ["a.b", "a b", "Praise", "", "1st", "a:b"])
def test_a_name_that_cannot_stand_in_a_recipe_is_refused(install: Install, kind: str, name: str) -> None:
    install("alignkit-odd", FORM.format(kind=kind, name=name, head=HEADS[kind], body="return []"))

    (reason,) = broken(load_plugins()).values()

    assert f"{name!r} cannot be " in reason
    assert "its name must match [a-z][a-z0-9-]{0,40}" in reason


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    ("word", "body", "why"),
    [
        ("async def", "return []", "it is asynchronous, and nobody would wait for it; write a plain `def`"),
        ("def", "yield 1", "it yields, where it must return its result"),
    ],
)
def test_a_function_whose_result_nobody_would_see_is_refused(
    install: Install, kind: str, word: str, body: str, why: str
) -> None:
    head = HEADS[kind].replace("def", word, 1)
    install("alignkit-odd", FORM.format(kind=kind, name="odd", head=head, body=body))

    (reason,) = broken(load_plugins()).values()

    assert why in reason


def test_a_package_that_imports_torch_when_loaded_is_named(install: Install, tmp_path: Path) -> None:
    before = sys.modules.pop("torch", None)
    (tmp_path / "torch.py").write_text("")
    install("alignkit-heavy", "import torch")

    try:
        heavy = load_plugins().heavy
    finally:
        sys.modules.pop("torch", None)
        if before is not None:
            sys.modules["torch"] = before

    assert list(map(str, heavy)) == ["alignkit-heavy 1.0"]


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (None, {"one", "two"}),
        ("", set()),
        (" , ", set()),
        ("first", {"one"}),
        ("alignkit-one", {"one"}),
        ("first, alignkit-two", {"one", "two"}),
    ],
)
def test_the_environment_limits_what_is_loaded(
    install: Install, monkeypatch: pytest.MonkeyPatch, chosen: str | None, found: set[str]
) -> None:
    install("alignkit-one", GOOD.format(name="one"), point="first")
    install("alignkit-two", GOOD.format(name="two"), point="second")
    if chosen is not None:
        monkeypatch.setenv("ALIGNKIT_PLUGINS", chosen)

    plugins = load_plugins()

    assert ({"one", "two"} & set(plugins.methods), "ppo" in plugins.methods) == (found, True)


def test_a_plugin_that_the_environment_names_in_vain_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "nowhere")

    assert broken(load_plugins()) == {
        "nowhere": "ALIGNKIT_PLUGINS names 'nowhere', and no package that is installed has such a plugin"
    }


def test_a_file_is_a_plugin(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(GOOD.format(name="mine"))

    plugins = load_plugins([file])

    assert (plugins.method("mine").name, plugins.origins["method:mine"].file) == ("mine", file)


def test_a_file_that_offers_nothing_is_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n")

    assert list(broken(load_plugins([file])).values()) == [
        "it offers nothing; mark a function with @hookimpl, such as alignkit_methods"
    ]


def test_what_a_plugin_prints_while_it_is_loaded_does_not_mix_with_a_result(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("alignkit-loud", "print('HELLO')\n" + GOOD.format(name="loud"))

    load_plugins()

    assert capsys.readouterr() == ("", "HELLO\n")


def test_a_changed_file_is_loaded_anew(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(GOOD.format(name="mine"))
    load_plugins([file])
    file.write_text(GOOD.format(name="other-name"))

    assert "other-name" in load_plugins([file]).methods


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py", "FOLDER/none.py: there is no such plugin file; check the path given with -p"),
        ("notes.md", "FOLDER/notes.md: not a Python file; give -p a file that ends in .py"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.md").write_text("")

    with pytest.raises(PluginError) as raised:
        load_plugins([tmp_path / name])

    assert (str(raised.value).replace(str(tmp_path), "FOLDER"), raised.value.status) == (message, 78)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("pop", "did you mean 'ppo'?"), ("dpo", "others come by pip install, perhaps alignkit-dpo")],
)
def test_an_unknown_method_is_advised(monkeypatch: pytest.MonkeyPatch, name: str, remedy: str) -> None:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")

    with pytest.raises(RecipeError) as raised:
        load_plugins().method(name)

    assert (raised.value.problem, raised.value.remedy.split("; ")[-1]) == (
        f"no plugin offers a method {name!r}",
        remedy,
    )


def test_an_unknown_method_of_an_installed_package_is_not_looked_for_elsewhere(install: Install) -> None:
    install("alignkit-swan", GOOD.format(name="swan-dive"))

    with pytest.raises(RecipeError) as raised:
        load_plugins().method("swan-lake")

    assert raised.value.remedy.split("; ")[-1] == (
        "alignkit-swan 1.0, whose methods begin with swan-, has none of that name"
    )


def test_many_broken_plugins_are_not_all_listed(install: Install) -> None:
    for number in (1, 2, 3, 4):
        install(f"alignkit-b{number}", "1 / 0")

    with pytest.raises(PluginError) as raised:
        load_plugins().method("zebra")

    assert raised.value.remedy == (
        "a plugin that cannot be loaded may offer it: alignkit-b1 1.0 (ZeroDivisionError: division by zero); "
        "alignkit-b2 1.0 (ZeroDivisionError: division by zero) and 2 more, see `alignkit methods`"
    )


WRITER = '''
from alignkit import Settings, Stage, Text, hookimpl, method


class WriterSettings(Settings):
    mark: str = "{mark}"


@method("write")
def write(settings: WriterSettings, stage: Stage) -> Text:
    """Write a row."""
    return stage.save_rows(Text, [{"text": "{mark}" + settings.mark}])


@hookimpl
def alignkit_methods():
    return [write]
'''


def test_a_recipe_says_whose_method_it_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    files = [tmp_path / "one.py", tmp_path / "two.py"]
    for file in files:
        file.write_text(WRITER.replace("{mark}", file.stem))
    recipe = tmp_path / "r.toml"
    recipe.write_text('[stage.first]\nmethod = "one:write"\n[stage.second]\nmethod = "two:write"\nwrite.mark = "!"\n')

    run = run_recipe(recipe, plugins=files, runs=tmp_path / "runs", inline=True, set={"result": ["first", "second"]})

    texts = [json.loads((stage.artifact.path / "data.jsonl").read_text())["text"] for stage in run.stages]
    assert texts == ["oneone", "two!"]
    assert [stage.method for stage in run.stages] == ["one:write", "two:write"]


def test_what_all_methods_here_say_of_themselves_can_be() -> None:
    for method in load_plugins(examined=False).methods.values():
        method.examine()
