"""Chats of a recipe: what templates refuse is found before anything is trained, and check counts as methods do."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_families import FOLDER
from click.testing import CliRunner
from transformers import AutoTokenizer

from alignkit.cli import main
from alignkit.contract.events import Warned
from alignkit.contract.kinds import Demonstrations, FunctionReward, Preferences, Prompts
from alignkit.errors import AlignkitError, DataError, RecipeError
from alignkit.estimate.chat_check import Chats
from alignkit.estimate.counting import RowCounts, count
from alignkit.estimate.desk import desk_for
from alignkit.estimate.encoded_rows import preview
from alignkit.estimate.preflight import Preflight, preflight
from alignkit.methods.evaluate import evaluate
from alignkit.methods.grpo import grpo
from alignkit.methods.reward import reward
from alignkit.methods.sft import sft
from alignkit.plan.planner import make_plan
from alignkit.run.machine import Machine
from alignkit.run.runner import run_recipe
from alignkit.testing import RecordingStage, run_method, write_tiny_policy, write_tiny_reward
from alignkit.training.models import load_policy
from alignkit.training.tokenizers import PLAIN_TEMPLATE, open_tokenizer, policy_tokenizer

USER, ASSISTANT = {"role": "user", "content": "how are you?"}, {"role": "assistant", "content": "fine thanks"}
SYSTEM = {"role": "system", "content": "warm"}
ANOTHER = 'give the source of the policy another template: chat_template = "FILE"'
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m.role + ':' + m.content + (eos_token if m.role == 'assistant' else ' ') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
OPENS = NO_SYSTEM.replace("{{ 'assistant:' }}", "{{ 'assistant:<think>' }}")


def write_template(folder: Path, template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe on a tiny model with a template, and rows of each kind, the third of them with a system turn."""
    write_tiny_policy(tmp_path / "model")
    write_template(tmp_path / "model", NO_SYSTEM)
    chats = [[{**USER, "content": f"how are you {n}?"}] for n in range(20)]
    chats[2].insert(0, SYSTEM)
    other = {**ASSISTANT, "content": "no"}
    kinds: dict[str, list[Any]] = {
        "demonstrations": [{"messages": [*chat, ASSISTANT]} for chat in chats],
        "preferences": [{"prompt": chat, "chosen": [ASSISTANT], "rejected": [other]} for chat in chats],
        "prompts": [{"prompt": chat} for chat in chats],
        "ratings": [{"prompt": chat, "completion": [ASSISTANT], "label": True} for chat in chats],
    }
    for kind, rows in kinds.items():
        write_rows(tmp_path / f"{kind}.jsonl", rows)

    def write(kind: str, *stage: str, base: str = "", rows: str = "", more: str = "") -> Path:
        file = tmp_path / "r.toml"
        file.write_text(
            f'[sources]\nbase = {{ policy = "model"{base} }}\n'
            f'rows = {{ {kind} = "{kind}.jsonl", held_out = 0.3{rows} }}\n{more}\n' + "\n".join(stage) + "\n"
        )
        return file

    return write


SFT = ("[stage.one]", 'method = "sft"', "sft.epochs = 1")


def found_of(file: Path) -> Preflight:
    runs = file.parent / "runs"
    plan = make_plan(file, runs=runs)
    desk, _ = desk_for(plan, runs, offline=True)
    return preflight(desk)


def refused_at(place: Path, stage: str = "one") -> list[str]:
    return [
        f"stage '{stage}', {place}:3: the chat template refuses the chat: System role not supported; correct the row, "
        f"or {ANOTHER}"
    ]


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        ("demonstrations", SFT),
        ("preferences", ("[stage.one]", 'method = "reward"')),
        ("preferences", ("[stage.one]", 'method = "dpo"')),
        ("preferences", ("[stage.one]", 'method = "kto"')),
        ("ratings", ("[stage.one]", 'method = "kto"')),
        ("prompts", ("[stage.one]", 'method = "grpo"', "inputs.rewards = ['gold']")),
        ("prompts", ("[stage.one]", 'method = "evaluate"', "inputs.policies = ['base']", "inputs.rewards = ['gold']")),
        ("prompts", ("[stage.one]", 'method = "rlaif"', "inputs.judge = 'rule'")),
    ],
    ids=["sft", "reward", "dpo", "kto of pairs", "kto", "grpo", "evaluate", "rlaif"],
)
def test_a_row_that_the_template_refuses_is_told_with_its_place(
    recipe: Callable[..., Path], tmp_path: Path, kind: str, stage: tuple[str, ...]
) -> None:
    more = 'gold = { reward = "function:reviews-gold" }\nrule = { judge = "rule:reviews-gold" }'

    found = found_of(recipe(kind, *stage, more=more))

    assert list(map(str, found.problems)) == refused_at(tmp_path / f"{kind}.jsonl")


HOW = [{}, {"inline": True}, pytest.param({"machine": Machine(processes=2)}, marks=pytest.mark.slow)]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_a_run_is_refused_before_its_first_stage(
    recipe: Callable[..., Path], tmp_path: Path, how: dict[str, Any]
) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"text": "the food was good"}\n' * 8)
    first = ("[stage.before]", 'method = "clm"', "[stage.one]", 'method = "sft"', "inputs.policy = 'before'")
    file = recipe("demonstrations", *first, more='corpus = { text = "corpus.jsonl" }')

    with pytest.raises(RecipeError) as refused:
        run_recipe(file, runs=tmp_path / "runs", **how)

    assert str(refused.value).splitlines() == refused_at(tmp_path / "demonstrations.jsonl")
    assert not list(tmp_path.glob("runs/stages/*"))


def test_check_ends_with_status_2_and_no_traceback(recipe: Callable[..., Path], tmp_path: Path) -> None:
    file = recipe("demonstrations", *SFT)

    result = CliRunner().invoke(main, ["check", str(file), "--runs", str(tmp_path / "runs"), "--offline"])

    assert result.exit_code == 2
    assert result.stderr == f"error: {refused_at(tmp_path / 'demonstrations.jsonl')[0]}\n"


def test_refused_rows_may_be_skipped_and_training_leaves_out_the_same(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    file = recipe("demonstrations", *SFT, rows=', on_bad_rows = "skip", max_bad = 0.1')

    (remark,) = found_of(file).remarks
    made = run_recipe(file, runs=tmp_path / "runs", inline=True)

    assert remark.problem == (
        "the chat template of 'base' refuses 1 of 20 rows, which are left out, such as "
        f"{tmp_path / 'demonstrations.jsonl'}:3: the chat template refuses the chat: System role not supported"
    )
    told = (made.stage("one").folder / "events.jsonl").read_text("utf-8")
    assert "1 demonstrations are left out: the chat template refuses them" in told


def test_more_refused_rows_than_max_bad_are_refused(recipe: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"messages": [*([SYSTEM] if n < 3 else []), {**USER, "content": f"{n}?"}, ASSISTANT]} for n in range(20)]
    write_rows(tmp_path / "demonstrations.jsonl", rows)
    file = recipe("demonstrations", *SFT, rows=', on_bad_rows = "skip", max_bad = 0.1')

    problems = list(map(str, found_of(file).problems))

    assert len(problems) == 4
    assert problems[3] == (
        "stage 'one', source 'rows': 3 of 20 rows are bad, more than max_bad 0.1; raise sources.rows.max_bad"
    )


def test_prompts_that_a_reward_models_own_template_refuses_are_refused(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_template(tmp_path / "model", NO_SYSTEM.replace("raise_exception('System role not supported')", "''"))
    write_tiny_reward(tmp_path / "scorer")
    write_template(tmp_path / "scorer" / "reward", NO_SYSTEM)
    stage = ("[stage.one]", 'method = "grpo"', "inputs.rewards = ['scorer']")

    found = found_of(recipe("prompts", *stage, more='scorer = { reward = "scorer/reward" }'))

    assert list(map(str, found.problems)) == [
        f"stage 'one', {tmp_path / 'prompts.jsonl'}:3: the chat template refuses the chat: System role not supported "
        "(it is that of the reward model 'scorer'); correct the row, or take a reward model whose template takes it"
    ]


def test_a_judge_whose_template_takes_no_question_is_refused(recipe: Callable[..., Path], tmp_path: Path) -> None:
    write_template(tmp_path / "model", NO_SYSTEM.replace("raise_exception('System role not supported')", "''"))
    write_tiny_policy(tmp_path / "judge")
    write_template(tmp_path / "judge", "{{ raise_exception('No questions') }}")
    stage = ("[stage.one]", 'method = "rlaif"', "inputs.judge = 'other'")

    found = found_of(recipe("prompts", *stage, more='other = { judge = "policy:judge" }'))

    assert list(map(str, found.problems)) == [
        "stage 'one', source 'other': the chat template refuses the chat: No questions; take a judge whose template "
        "takes questions and answers in turn"
    ]


def test_what_had_better_be_known_of_a_template_is_told_once(recipe: Callable[..., Path], tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role + ':' + m.content.split('!')[-1] + eos_token }}{% endfor %}"
    write_template(tmp_path / "model", template)
    said = {**ASSISTANT, "content": "well! fine", "reasoning_content": "hm", "prefix": True}
    write_rows(tmp_path / "demonstrations.jsonl", [{"messages": [USER, said]} for _ in range(4)])
    stages = (*SFT, "[stage.two]", 'method = "sft"', "inputs.policy = 'one'")

    found = found_of(recipe("demonstrations", *stages))

    assert not found.problems
    assert [str(remark) for remark in found.remarks if "duplicate rows" not in str(remark)] == [
        "source 'rows': the chat template of 'base' renders 4 answers otherwise than they stand, such as that of "
        f"{tmp_path / 'demonstrations.jsonl'}:1; see the rendered rows; if that is not meant, {ANOTHER}",
        "source 'rows': the chat template of 'base' does not read prefix, which 4 turns have; take it out, or "
        + ANOTHER,
        "source 'rows': the chat template of 'base' does not read reasoning_content, which 4 turns have; take it out, "
        f"or {ANOTHER}",
        "source 'base': the chat template of 'base' does not ask for an answer (add_generation_prompt), so its heading "
        f"'assistant:' is learnt as part of the answer; {ANOTHER}",
    ]


def test_what_is_told_of_a_source_is_told_of_the_stage_that_takes_it(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_template(tmp_path / "model", PLAIN_TEMPLATE)
    other = {**ASSISTANT, "content": "no", "prefix": True}
    pairs = [{"prompt": [{**USER, "content": f"how are you {n}?"}], "chosen": [ASSISTANT], "rejected": [other]}
             for n in range(20)]  # fmt: skip
    write_rows(tmp_path / "preferences.jsonl", pairs)
    second = ("[stage.two]", 'method = "reward"', "reward.epochs = 1")
    file = recipe("demonstrations", *SFT, *second, more='pairs = { preferences = "preferences.jsonl" }')
    heard: list[Any] = []

    run_recipe(file, runs=tmp_path / "runs", inline=True, offline=True, observers=[heard.append])

    told = [(one.stage, one.problem.partition(",")[0]) for one in heard if isinstance(one, Warned)]
    assert ("two", "source 'pairs': the longer answer wins in 100% of the rows") in told
    assert ("two", "source 'pairs': the chat template of 'base' does not read prefix") in told


def test_a_model_that_cannot_be_opened_is_told_once(recipe: Callable[..., Path], tmp_path: Path) -> None:
    file = recipe("demonstrations", *SFT)
    for part in (tmp_path / "model").glob("tokenizer*"):
        part.unlink()

    result = CliRunner().invoke(main, ["check", str(file), "--runs", str(tmp_path / "runs"), "--offline"])

    assert result.exit_code == RecipeError.status
    assert [line.partition(" (")[0] for line in result.stderr.splitlines()] == [
        f"error: stage 'one', {tmp_path / 'model'}: the tokenizer cannot be opened"
    ]


@pytest.mark.parametrize("inline", [True, False])
def test_chats_are_not_joined_with_plain_text(recipe: Callable[..., Path], tmp_path: Path, inline: bool) -> None:
    write_template(tmp_path / "model", PLAIN_TEMPLATE)
    write_rows(tmp_path / "plain.jsonl", [{"prompt": f"how are you {n}?", "completion": " fine"} for n in range(8)])
    file = recipe("demonstrations", *SFT, "inputs.demos = ['rows', 'texts']",
                  more='texts = { demonstrations = "plain.jsonl" }')  # fmt: skip

    with pytest.raises(AlignkitError) as refused:
        run_recipe(file, runs=tmp_path / "runs", inline=inline, offline=True)

    assert str(refused.value) == (
        "stage 'one': demos joins chats (rows) and plain text (texts); write all rows in one form, or take those of "
        'one: inputs.demos = "rows"'
    )
    assert not list((tmp_path / "runs" / "stages").glob("one-*"))


@pytest.mark.parametrize("kind", ["demonstrations", "prompts", "preferences"])
def test_turns_that_a_template_leaves_away_are_told(recipe: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    silent = NO_SYSTEM.replace("{{ raise_exception('System role not supported') }}", "")
    without = "{% for m in messages if m.role != 'system' %}"
    write_template(tmp_path / "model", silent.replace("{% for m in messages %}", without))
    stage = {
        "demonstrations": SFT,
        "prompts": ("[stage.one]", 'method = "grpo"', "inputs.rewards = ['gold']"),
        "preferences": ("[stage.one]", 'method = "dpo"'),
    }

    found = found_of(recipe(kind, *stage[kind], more='gold = { reward = "function:reviews-gold" }'))

    assert not found.problems
    turns = 2 if kind == "preferences" else 1  # of a pair both sides are looked at
    assert (
        f"source 'rows': the chat template of 'base' does not show {turns} turns of the role 'system' as they stand, "
        f"such as in {tmp_path / kind}.jsonl:3; see the rendered rows; if that is not meant, {ANOTHER}"
    ) in list(map(str, found.remarks))


def test_chats_are_rendered_once_for_each_content(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe("demonstrations", *SFT)
    found_of(file)
    monkeypatch.setattr(Chats, "_tokenizer", lambda *_: open_tokenizer(tmp_path / "model", "{{ nothing.at.all }}"))

    assert list(map(str, found_of(file).problems)) == refused_at(tmp_path / "demonstrations.jsonl")


# A template that the recipe gives


def test_a_template_of_the_recipe_takes_the_place_of_the_models_own(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.jinja").write_text(NO_SYSTEM.replace("{{ raise_exception('System role not supported') }}", ""))
    file = recipe("demonstrations", *SFT, base=', chat_template = "mine.jinja"')

    assert not found_of(file).problems
    made = run_recipe(file, runs=tmp_path / "runs", inline=True).artifact("one")

    kept = open_tokenizer(made.path).chat_template
    assert kept == (tmp_path / "mine.jinja").read_text()


def test_it_counts_by_what_it_says(recipe: Callable[..., Path], tmp_path: Path) -> None:
    def prints(base: str) -> str | None:
        return make_plan(recipe("demonstrations", *SFT, base=base), runs=tmp_path / "runs").sources["base"].fingerprint

    (tmp_path / "a.jinja").write_text("{{ messages }}")
    (tmp_path / "b.jinja").write_text("{{ messages }}")
    one, same, none = prints(', chat_template = "a.jinja"'), prints(', chat_template = "b.jinja"'), prints("")
    (tmp_path / "b.jinja").write_text("{{ messages }}!")

    assert one == same
    assert len({one, none, prints(', chat_template = "b.jinja"')}) == 3


@pytest.mark.parametrize(
    ("content", "problem", "remedy"),
    [
        (None, "there is no file 'mine.jinja'", "it was looked for as FOLDER/mine.jinja"),
        (b"\xff", "'mine.jinja' is no text in UTF-8", "give a file with a template"),
        (b"hello", "'mine.jinja' is no chat template: it never mentions messages", "give a Jinja template"),
        (
            b"{% for m in messages %}\n{{ m.content }\n{% endfor %}",
            "mine.jinja:2: the chat template cannot be read: unexpected '}'",
            "correct it there",
        ),
        (
            b"{{ messages | shout }}",
            "mine.jinja:1: the chat template cannot be read: No filter named 'shout'",
            "correct it there",
        ),
    ],
)
def test_a_file_that_is_no_template_is_refused_by_the_plan(
    recipe: Callable[..., Path], tmp_path: Path, content: bytes | None, problem: str, remedy: str
) -> None:
    if content is not None:
        (tmp_path / "mine.jinja").write_bytes(content)

    with pytest.raises(AlignkitError) as refused:
        make_plan(recipe("demonstrations", *SFT, base=', chat_template = "mine.jinja"'), runs=tmp_path / "runs")

    assert isinstance(refused.value, DataError)
    assert str(refused.value).replace(str(tmp_path), "FOLDER") == (f"r.toml:2: source 'base': {problem}; {remedy}")


def test_every_template_of_the_families_can_be_given(recipe: Callable[..., Path], tmp_path: Path) -> None:
    for file in FOLDER.glob("*.jinja"):
        (tmp_path / "mine.jinja").write_bytes(file.read_bytes())
        plan = make_plan(recipe("demonstrations", *SFT, base=', chat_template = "mine.jinja"'), runs=tmp_path / "runs")
        assert plan.sources["base"].chat_template == file.read_text("utf-8")


def test_a_template_that_opens_a_thought_is_mended_by_one_of_the_recipe(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_template(tmp_path / "model", OPENS)
    write_rows(
        tmp_path / "demonstrations.jsonl", [{"messages": [{**USER, "content": f"{n}?"}, ASSISTANT]} for n in range(9)]
    )
    (tmp_path / "training.jinja").write_text(NO_SYSTEM)

    first = str(found_of(recipe("demonstrations", *SFT)).problems[0])

    assert first == (
        f"stage 'one', {tmp_path / 'demonstrations.jsonl'}:1: the chat template renders an answer otherwise than it "
        "asks for it: asked with 'assistant:<think>', answered with 'assistant:fine thanks<eos>'; " + ANOTHER
    )
    assert not found_of(recipe("demonstrations", *SFT, base=', chat_template = "training.jinja"')).problems


def test_a_policy_is_opened_with_the_template_of_its_source(tiny_policy: Any) -> None:
    policy = tiny_policy.model_copy(update={"chat_template": "{{ messages }}"})

    assert load_policy(policy)[1].chat_template == policy_tokenizer(policy).chat_template == "{{ messages }}"


# What check counts is what methods leave out


LONG = " was good" * 30
GOLD = FunctionReward(name="gold", fingerprint="", path="", function="reviews-gold")
DEMOS = [{"prompt": "the food", "completion": " was good" * n} for n in (1, 2, 30, 1, 40, 1)] + [
    {"prompt": "the food" + LONG, "completion": " yes"}
]
PAIRS = [{"prompt": "the food", "chosen": " was good" * n, "rejected": " no"} for n in (1, 2, 30, 1, 40, 1)]
ASKED = [{"prompt": f"the food {n}" + " was good" * n} for n in (1, 2, 9, 12, 3, 4, 30)]
ONLINE = {"updates": 1, "batch": 4, "answers": 2, "minibatches": 1, "generation": {"max_new_tokens": 6}}


@pytest.mark.parametrize(
    ("method", "kind", "rows", "settings", "told"),
    [
        (sft, Demonstrations, DEMOS, {"epochs": 1, "batch": 2}, "of 7 demonstrations, 2 cut short and 1 left out"),
        (reward, Preferences, PAIRS, {"epochs": 1, "batch": 2}, "of 6 pairs, 2 left out"),
        (grpo, Prompts, ASKED, ONLINE, "of 7 prompts, 3 left out"),
        (evaluate, Prompts, ASKED, {"prompts": 4, "max_new_tokens": 6}, "of 6 prompts, 2 left out"),
    ],
    ids=["sft", "reward", "grpo", "evaluate"],
)
def test_check_counts_what_methods_leave_out(
    tiny_policy: Any,
    records: Any,
    stage: RecordingStage,
    method: Any,
    kind: Any,
    rows: list[Mapping[str, Any]],
    settings: dict[str, Any],
    told: str,
) -> None:
    aside = method is evaluate
    given = records(kind, [] if aside else rows, rows if aside else [])
    settings = {**settings, "max_length": 24, "max_lost": 1.0, "precision": "fp32"}
    inputs: dict[str, Any] = {
        "sft": {"policy": tiny_policy, "demos": given},
        "reward": {"policy": tiny_policy, "pairs": given},
        "grpo": {"policy": tiny_policy, "rewards": (GOLD,), "prompts": given},
        "evaluate": {"policies": (tiny_policy,), "rewards": (GOLD,), "prompts": given},
    }[method.name]

    run_method(method, settings, stage, **inputs)

    read = RowCounts(0, len(rows)) if aside else RowCounts(len(rows), 0)
    counted = count(given, read, open_tokenizer(tiny_policy.path))
    found = preview(tiny_policy, given, method.needs(method.settings.model_validate(settings)), counted, read)
    (warning,) = [problem for problem, _ in stage.warnings if problem.startswith("of ")]
    assert warning.startswith(told)
    over = {"sft": 3, "reward": 2, "grpo": 3, "evaluate": 3}  # an evaluation has enough before the last one
    assert found.over == over[method.name]
    assert found.fate == (
        "2 lose their end and 1 are left out, since nothing of the answer would remain"
        if method is sft
        else "are left out whole; none is cut"
    )


def test_an_evaluation_that_would_leave_out_too_much_is_refused_beforehand(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{"prompt": f"the food {n}" + " was good" * (40 if n % 2 else 1)} for n in range(40)]
    write_rows(tmp_path / "prompts.jsonl", rows)
    stage = ("[stage.one]", 'method = "evaluate"', "max_length = 80", "evaluate.prompts = 4")
    inputs = ("inputs.policies = ['base']", "inputs.rewards = ['gold']")
    more = 'gold = { reward = "function:reviews-gold" }'

    refused = found_of(recipe("prompts", *stage, *inputs, more=more))
    allowed = found_of(recipe("prompts", *stage, "evaluate.max_lost = 0.9", *inputs, more=more))

    (problem,) = refused.problems
    assert problem.where == "stage 'one'"
    assert problem.problem == (
        "of 6 prompts, 2 left out: they do not fit in max_length 80 with an answer of 64 (the longest has 85 tokens)"
    )
    assert problem.remedy == "raise max_length, or max_lost (now 0.05) if that is meant"
    assert not allowed.problems
