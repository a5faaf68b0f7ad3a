"""The command line: what it prints, where, and with which exit status."""

import json
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from light_recipes import PLUGIN, Alignkit, command_line, light_recipe

from alignkit.cli import Commands
from alignkit.errors import Problem, RecipeError
from alignkit.text import table

RECIPE = light_recipe(first="count.steps = 4", spare=True)


@pytest.fixture
def alignkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alignkit:
    return command_line(RECIPE, tmp_path, monkeypatch)


def light(alignkit: Alignkit, command: str, *more: str) -> Result:
    return alignkit(command, "light.toml", "-p", "methods.py", "--until", "second", *more)


def python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


CALL = """
import sys
from alignkit.cli import main
main({words}, standalone_mode=False)
print({{"torch", "transformers", "trl", "datasets", "peft"}} & {{*sys.modules}})
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["plan", "rlhf"],
        ["methods", "ppo"],
        *(pytest.param(words, marks=pytest.mark.slow) for words in (["plan", "tutorial"], ["methods"])),
    ],
)
def test_looking_imports_nothing_heavy(alignkit: Alignkit, words: list[str]) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        printed = python(CALL.format(words=words))
        seconds.append(time.perf_counter() - start)

    print(f"alignkit {' '.join(words)}: {min(seconds):.2f} s, the best of 3")
    assert printed.splitlines()[-1] == "set()"


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "alignkit", "--version"], capture_output=True, text=True, check=True)

    assert done.stdout == "alignkit 0.1.0\n"


def test_no_bar_is_drawn_into_a_pipe() -> None:
    code = "from alignkit.cli import main; main(['--version'], standalone_mode=False); import tqdm; tqdm.tqdm(range(3))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr == ""


def test_a_plan_is_shown_as_tables(alignkit: Alignkit) -> None:
    result = light(alignkit, "plan", "--set", "second.count.steps=9")

    assert result.stdout.splitlines() == [
        "light  light.toml  seed 1",
        "stage   method  state       makes  takes",
        "first   count   will run    Text",
        "second  shout   will run    Text   text=first",
        "spare   count   not needed",
        "",
        "first   set: count.steps = 4",
        "second  standing by: count.steps",
    ]


def test_a_plan_tells_the_machine_that_it_would_run_on(alignkit: Alignkit) -> None:
    served = '[served]\nrollouts.vllm = "vllm"\nrewards.urls = ["http://far:8000"]\n'
    Path("machines.toml").write_text(f"[box]\nprocesses = 8\n[pair]\nprocesses = 2\nsharded = false\n{served}")

    box, pair, served = (
        light(alignkit, "plan", "--on", name).stdout.splitlines()[1] for name in ("box", "pair", "served")
    )
    told = json.loads(light(alignkit, "plan", "--on", "box", "--json").stdout)["machine"]

    assert box == "on box: 8 processes, among which weights are cut up where they do not fit one"
    assert pair == "on pair: 2 processes, each of which holds all weights"
    assert served == "on served: one process, answers and scores from vLLM"
    assert (told["processes"], told["sharded"]) == (8, "auto")


def test_a_machine_that_is_not_there_is_refused_before_a_plan_is_made(alignkit: Alignkit) -> None:
    Path("machines.toml").write_text("[box]\nprocesses = 8\n")

    results = [light(alignkit, "plan", "--on", "bix"), alignkit("check", "rlhf", "--on", "bix")]

    assert all("there is no machine 'bix'; did you mean 'box'?" in result.stderr for result in results)


def test_a_plan_fits_forty_columns(alignkit: Alignkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")

    result = alignkit("plan", "rlhf")

    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 40


def test_a_plan_says_what_is_finished(alignkit: Alignkit) -> None:
    light(alignkit, "recipe", "--inline", "--until", "first")

    states = json.loads(light(alignkit, "plan", "--json").stdout)["stages"]

    assert states["first"]["state"] == f"finished {states['first']['fingerprint'][:8]}"
    assert [states[name]["state"] for name in ("second", "spare")] == ["will run", "not needed"]


def test_a_plan_says_what_is_run_again(alignkit: Alignkit) -> None:
    light(alignkit, "recipe", "--inline")

    states = json.loads(light(alignkit, "plan", "--again", "first", "--json").stdout)["stages"]

    assert [states[name]["state"] for name in ("first", "second")] == [
        "will run again",
        "will run again, inputs made anew",
    ]


def test_a_plan_says_where_a_stage_resumes(alignkit: Alignkit) -> None:
    light(alignkit, "recipe", "--inline", "--set", "first.count.fail=bug", "--set", "first.count.at=3")

    made = light(alignkit, "plan", "--json", "--set", "first.count.fail=bug", "--set", "first.count.at=3")

    assert json.loads(made.stdout)["stages"]["first"]["state"] == "resumes at step 2"


def test_a_plan_in_json_says_all(alignkit: Alignkit) -> None:
    plan = json.loads(light(alignkit, "plan", "--json").stdout)

    assert plan["stages"]["second"] | {"fingerprint": "", "seed": 0} == {
        "method": "shout",
        "from": "methods.py",
        "state": "will run",
        "wanted": True,
        "makes": "Text",
        "inputs": {"text": ["first"]},
        "inferred": ["text"],
        "preset": None,
        "settings": {"mark": "!"},
        "standing_by": [],
        "constraints": {},
        "gates": {},
        "seed": 0,
        "fingerprint": "",
    }


def test_running_says_first_which_recipe_it_is(alignkit: Alignkit) -> None:
    result = light(alignkit, "recipe", "--inline")

    assert result.stderr.splitlines()[0] == "running light.toml"


def test_a_packaged_recipe_is_named_as_such(alignkit: Alignkit) -> None:
    result = alignkit("recipe", "rlhf.toml", "--until", "nowhere")

    assert result.stderr.splitlines()[0] == "running the packaged recipe rlhf"


def test_a_run_ends_with_its_results(alignkit: Alignkit) -> None:
    result = light(alignkit, "recipe", "--inline")

    lines = [line.split() for line in result.stdout.splitlines()[-5:]]
    assert [line[:2] for line in lines] == [
        ["stage", "made"],
        ["first", "Text"],
        ["second", "Text"],
        ["verdict:", "Nothing"],
        ["report:", f"runs/light/{Path('runs/light/latest').readlink()}/report.html"],
    ]
    assert lines[1][-4:] == ["steps", "0", "->", "4"]
    assert result.exit_code == 0


def test_a_run_writes_its_report(alignkit: Alignkit) -> None:
    light(alignkit, "recipe", "--inline")

    assert Path("runs/light/latest/report.html").read_text("utf-8").startswith("<!doctype html>")


def test_a_run_that_reuses_all_waits_for_nothing(alignkit: Alignkit) -> None:
    light(alignkit, "recipe", "--inline")

    result = light(alignkit, "recipe", "--inline")

    assert "starting" not in result.stderr
    assert [line.split()[2] for line in result.stdout.splitlines()[1:3]] == ["reused", "reused"]


def test_json_gives_one_event_a_line_and_nothing_else(alignkit: Alignkit) -> None:
    result = light(alignkit, "recipe", "--inline", "--json")

    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(event["event"], event["stage"]) for event in events if event["event"] != "Metrics"] == [
        ("StageStarted", "first"),
        ("Result", "first"),
        ("Sample", "first"),
        ("StageFinished", "first"),
        ("StageStarted", "second"),
        ("StageFinished", "second"),
    ]


def test_a_failed_stage_keeps_the_rest_and_says_how_to_go_on(alignkit: Alignkit) -> None:
    result = light(alignkit, "recipe", "--inline", "--set", "first.count.fail=user")

    assert result.exit_code == 76
    report, problem, command = result.stderr.splitlines()[-3:]
    assert report == f"report: runs/light/{Path('runs/light/latest').readlink()}/report.html"
    assert "the loss is NaN" in problem
    assert command == (
        "go on with: alignkit recipe light.toml -p methods.py --until second --inline --set first.count.fail=user"
    )
    assert "Traceback" not in result.stderr


def test_finished_stages_are_verified(alignkit: Alignkit) -> None:
    before = alignkit("verify")
    light(alignkit, "recipe", "--inline")
    whole = light(alignkit, "verify")
    (file,) = Path("runs").glob("stages/first-*/artifact/data.jsonl")
    file.write_text(file.read_text().replace("row 0", "row 9"))
    harmed = alignkit("verify", "runs")

    assert (before.exit_code, before.stdout) == (0, "no stage is finished\n")
    assert (whole.exit_code, [line.split()[1:] for line in whole.stdout.splitlines()]) == (
        0,
        [["size", "state"], ["0", "MiB", "as", "it", "was", "written"], ["0", "MiB", "as", "it", "was", "written"]],
    )
    assert (harmed.exit_code, harmed.stdout.splitlines()[1].split()[-1]) == (1, "damaged")
    folder = file.parent.parent.resolve()
    wrong = "the finished stage is damaged: data.jsonl is not as it was written"
    assert harmed.stderr == f"error: {folder}: {wrong}; put it back, or run again with --again first\n"


def test_a_gate_that_would_fail_again_is_not_gone_on_with(alignkit: Alignkit) -> None:
    result = light(alignkit, "recipe", "--inline", "--set", "first.gates.steps.min=9")

    assert (result.exit_code, "go on with" in result.stderr) == (1, False)


def test_a_plugin_file_that_cannot_be_loaded_is_told_in_one_line(alignkit: Alignkit) -> None:
    Path("odd.py").write_text("import no_such_module\n")

    result = light(alignkit, "recipe", "--inline", "-p", "odd.py")

    problem = "the plugin odd.py cannot be loaded (ModuleNotFoundError: No module named 'no_such_module')"
    assert f"warning: first: {problem}; correct it, or leave -p out" in result.stderr.splitlines()
    assert "Traceback" not in result.stderr


def test_nothing_that_a_terminal_acts_on_is_printed(alignkit: Alignkit) -> None:
    Path("od\x1b[31md.toml").write_text(RECIPE.replace("steps = 4", 'fail = "loud"'))

    result = alignkit("recipe", "od\x1b[31md.toml", "-p", "methods.py", "--inline", "--until", "first")

    assert "running od\\x1b[31md.toml" in result.stderr
    assert "ValueError: \\x1b[2Jcleared" in result.stderr
    assert "\x1b[2J" not in result.output
    assert "\x1b[31m" not in result.output


def test_all_problems_of_a_recipe_are_printed_a_line_each(alignkit: Alignkit) -> None:
    result = light(alignkit, "plan", "--set", "first.count.stepz=1", "--set", "second.shout.mork=x")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: --set first.count.stepz: stage 'first': count.stepz: unknown setting; did you mean 'steps'?",
        "error: --set second.shout.mork: stage 'second': shout.mork: unknown setting; did you mean 'mark'?",
    ]


def test_a_change_without_a_value_is_refused(alignkit: Alignkit) -> None:
    result = light(alignkit, "plan", "--set", "first")

    assert (result.exit_code, result.stderr) == (2, "error: --set first: not KEY=VALUE; write --set KEY=VALUE\n")


def test_running_an_unknown_stage_again_is_refused(alignkit: Alignkit) -> None:
    result = light(alignkit, "plan", "--again", "secnd")

    assert (result.exit_code, result.stderr) == (
        2,
        "error: --again secnd: there is no stage 'secnd' to run again; did you mean 'second'?\n",
    )


def test_an_unknown_machine_is_refused(alignkit: Alignkit) -> None:
    Path("machines.toml").write_text("[laptop]\nprocesses = 1\n")

    result = light(alignkit, "recipe", "--on", "laptob")

    assert result.exit_code == 2
    assert result.stderr.splitlines()[1].endswith("there is no machine 'laptob'; did you mean 'laptop'?")


def test_methods_are_listed_with_what_they_take_and_make(alignkit: Alignkit) -> None:
    result = alignkit("methods", "-p", "methods.py")

    rows = {line.split("  ")[0]: " ".join(line.split()) for line in result.stdout.splitlines()}
    assert rows["count"] == "count nothing -> Text methods.py Count steps, committing each one."
    assert rows["shout"] == "shout text -> Text methods.py Say it louder."


def test_rewards_and_judges_are_listed_by_the_address_that_a_source_gives(alignkit: Alignkit) -> None:
    result = alignkit("methods")

    rows = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert 'reward = "function:reviews-gold"' in rows


POLISH = '''
from typing import Literal
from pydantic import PositiveFloat
from alignkit import Preferences, Ratings, Scores, Settings, Stage, Text, hookimpl, method

class Brush(Settings):
    width: PositiveFloat = 1e-5
    """How broad it is,
    in metres."""

class PolishSettings(Settings):
    rounds: int
    """How often; must be given."""
    kind: Literal["soft", "hard"] = "soft"
    brush: Brush | None = None
    """Use a brush."""

@method("polish")
def polish(
    settings: PolishSettings, stage: Stage, *, pairs: Preferences | Ratings, texts: tuple[Text, ...],
    extra: Text | None = None,
) -> Scores:
    """Make
    it shine."""

@hookimpl
def alignkit_methods():
    return [polish]
'''


def test_a_method_is_described_by_its_signature_and_docstrings(alignkit: Alignkit) -> None:
    Path("polish.py").write_text(POLISH)

    result = alignkit("methods", "polish", "-p", "polish.py")

    assert result.stdout.splitlines() == [
        "polish  Make it shine.",
        "from  polish.py",
        "",
        "takes",
        "  pairs  Preferences or Ratings",
        "  texts  Text                    one or several",
        "  extra  Text                    only if the recipe names it",
        "makes  Scores",
        "",
        "setting             default  type",
        "polish.rounds                whole number                How often; must be given.",
        'polish.kind         "soft"   "soft" or "hard"',
        "polish.brush        -        group of settings or false  Use a brush.",
        "polish.brush.width  1e-5     number > 0                  How broad it is, in metres.",
    ]


def test_below_the_settings_it_is_told_which_ones_may_stand_elsewhere(alignkit: Alignkit) -> None:
    assert alignkit("methods", "ppo").stdout.splitlines()[-1] == (
        "note  lora, precision, max_length, optimisation may also stand on the stage itself or in [defaults], and so "
        "survive a change of method; lora = false switches off what [defaults] gives"
    )


def test_groups_of_settings_are_shown_flat(alignkit: Alignkit) -> None:
    described = json.loads(alignkit("methods", "ppo", "--json").stdout)

    settings = {setting["key"]: setting for setting in described["settings"]}
    assert settings["ppo.kl.coef"]["type"] == "number >= 0"
    assert settings["ppo.lora"]["type"] == "group of settings or false"
    assert settings["ppo.lora.rank"]["default"] == "16"
    assert described["makes"] == "Policy"


def test_an_unknown_method_is_refused_with_the_near_miss(alignkit: Alignkit) -> None:
    result = alignkit("methods", "pp")

    assert (result.exit_code, result.stderr) == (2, "error: no plugin offers a method 'pp'; did you mean 'ppo'?\n")


SCORERS = """
from alignkit import Settings, hookimpl, judge, judge_scheme, reward

class Praise(Settings):
    column: str = "result"
    '''Where it looks.'''

@reward("praise")
def praise(answers, settings: Praise):
    '''Praise.'''

@judge("shorter")
def shorter(questions, settings: Praise):
    '''Compare.'''

@judge_scheme("house")
def house(judge, settings: Praise, cache):
    '''Open.'''

@hookimpl
def alignkit_rewards():
    return [praise]

@hookimpl
def alignkit_judges():
    return [shorter, house]
"""


@pytest.mark.parametrize(
    ("name", "address", "key"),
    [
        ("function:praise", 'reward = "function:praise"', "settings.column"),
        ("praise", 'reward = "function:praise"', "settings.column"),
        ("rule:shorter", 'judge = "rule:shorter"', "settings.column"),
        ("house", 'judge = "house:..."', "column"),
        ("house:", 'judge = "house:..."', "column"),
    ],
)
def test_a_reward_or_a_judge_is_described_with_its_settings(
    alignkit: Alignkit, name: str, address: str, key: str
) -> None:
    Path("scorers.py").write_text(SCORERS)

    lines = alignkit("methods", name, "-p", "scorers.py").stdout.splitlines()

    assert lines[0].startswith(address)
    assert lines[1] == "from  scorers.py"
    assert lines[4].split() == [key, '"result"', "text", "Where", "it", "looks."]
    found = json.loads(alignkit("methods", name, "-p", "scorers.py", "--json").stdout)
    assert [setting["key"] for setting in found["settings"]] == [key]


def test_an_unknown_reward_is_refused_with_the_near_miss(alignkit: Alignkit) -> None:
    Path("scorers.py").write_text(SCORERS)

    result = alignkit("methods", "prase", "-p", "scorers.py")

    assert result.stderr == "error: no plugin offers a method 'prase'; did you mean 'praise'?\n"


def test_a_method_whose_name_two_have_is_described_by_its_address(alignkit: Alignkit) -> None:
    Path("other.py").write_text(PLUGIN.read_text())

    result = alignkit("methods", "other:count", "-p", "methods.py", "-p", "other.py")

    assert result.stdout.splitlines()[1] == "from  other.py"


def test_a_broken_plugin_is_listed_and_stops_nothing(alignkit: Alignkit) -> None:
    Path("broken.py").write_text("1 / 0")

    result = alignkit("methods", "-p", "broken.py", "-p", "methods.py")

    assert result.exit_code == 0
    assert "!  broken: broken.py cannot be loaded: ZeroDivisionError: division by zero" in result.stdout.splitlines()


def test_two_offers_of_one_name_are_listed(alignkit: Alignkit) -> None:
    Path("other.py").write_text(PLUGIN.read_text())

    result = alignkit("methods", "-p", "methods.py", "-p", "other.py", "--json")

    assert json.loads(result.stdout)["clashes"]["method:count"] == ["methods.py", "other.py"]


def test_a_starter_is_a_recipe_that_can_be_planned(alignkit: Alignkit) -> None:
    written = alignkit("init", "mine.toml")

    assert written.stdout == "mine.toml is written; see what it does: alignkit plan mine.toml\n"
    assert alignkit("plan", "mine.toml").stdout.splitlines()[0] == "mine  mine.toml  seed 17"


def test_a_starter_overwrites_nothing(alignkit: Alignkit) -> None:
    result = alignkit("init", "light.toml")

    assert (result.exit_code, Path("light.toml").read_text()) == (2, RECIPE)
    assert result.stderr == (
        "error: light.toml: the file exists already; choose another name: alignkit init NAME.toml\n"
    )


def test_an_unknown_template_is_refused_with_the_near_miss(alignkit: Alignkit) -> None:
    result = alignkit("init", "--template", "rlfh")

    assert (result.exit_code, result.stderr) == (
        2,
        "error: --template: there is no template 'rlfh'; did you mean 'rlhf'?\n",
    )


@pytest.mark.slow
def test_the_doctor_speaks_json(alignkit: Alignkit) -> None:
    result = alignkit("doctor", "--json")

    assert json.loads(result.stdout)["alignkit"] == "0.1.0"


def failing(error: BaseException) -> Result:
    """Call a command that fails so."""

    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(group, ["fail"])


def test_every_problem_of_an_error_gets_a_line_and_the_error_its_status() -> None:
    result = failing(RecipeError.of([Problem("odd", "a.toml:1", "mend it"), Problem("odder")]))

    assert (result.exit_code, result.stderr) == (2, "error: a.toml:1: odd; mend it\nerror: odder\n")


def test_an_interrupt_has_its_status() -> None:
    result = failing(KeyboardInterrupt())

    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_a_bug_keeps_its_traceback_and_says_what_it_is() -> None:
    result = failing(ZeroDivisionError())

    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exception.__notes__ == [
        "This is a bug in alignkit or in a plugin; add `alignkit doctor --json` to a report of it."
    ]


def test_a_table_wraps_its_last_column() -> None:
    rows = [("a", "one two three four five six"), ("bcd", "seven")]

    assert table(rows, 30, ("x", "words")) == [
        "x    words",
        "a    one two three four five",
        "     six",
        "bcd  seven",
    ]


def test_a_table_that_is_too_wide_becomes_blocks() -> None:
    rows = [("a", "b" * 20, "one two three four five six seven")]

    assert table(rows, 30, ("x", "y", "words")) == [
        "a",
        "  y: bbbbbbbbbbbbbbbbbbbb",
        "  words: one two three four",
        "    five six seven",
    ]


def test_a_table_of_nothing_has_no_lines() -> None:
    assert table([], 30, ("x", "words")) == []


@pytest.mark.parametrize("words", [("--model", "builtin:tiny"), ("--online",)])
def test_init_of_no_files_refuses_what_is_about_files(alignkit: Alignkit, words: tuple[str, ...]) -> None:
    result = alignkit("init", "mine.toml", *words)

    assert result.exit_code == 2
    assert "no file of rows is named; name your files after the recipe's name" in result.stderr
    assert not Path("mine.toml").exists()
