"""Chats rendered by anybody's template: what ends an answer, what is learnt, and what a template refuses."""

from typing import Any

import pytest
from chat_families import FAMILIES
from chat_tokenizers import decoded, learnt, make_tokenizer, unlearnt

from alignkit.contract.reward_function import Answer
from alignkit.data.records import Record
from alignkit.errors import DataError
from alignkit.training.classifiers import as_read
from alignkit.training.encoding import (
    LengthReport,
    answered,
    demonstration,
    demonstrations,
    preferences,
    prompt_ids,
    prompts,
    turn_ends,
)
from alignkit.training.row_texts import answered_text
from alignkit.training.templates import learnt_heading, rendered, unread_keys
from alignkit.training.tokenizers import PLAIN_TEMPLATE

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ANOTHER = 'give the source of the policy another template: chat_template = "FILE"'
CHATML_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def ends(template, marks, **named):
    tokenizer = make_tokenizer(template, marks, **named)
    return {tokenizer.convert_ids_to_tokens(token) for token in turn_ends(tokenizer)}


@pytest.mark.parametrize("special", [True, False])
def test_the_mark_behind_an_answer_ends_a_turn_whether_it_is_listed_as_special_or_not(special):
    assert ends(CHATML, CHATML_MARKS, eos="<|endoftext|>", special=special) == {"<|im_end|>"}


def test_the_end_of_the_sequence_ends_a_turn_where_the_template_writes_it():
    assert ends(PLAIN_TEMPLATE, ("</s>",), eos="</s>") == {"</s>"}


def test_white_space_may_stand_before_the_end_of_a_turn():
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + ' </s>' }}{% endfor %}"

    assert ends(template, ("</s>",), eos="</s>") == {"</s>"}


def test_the_heading_of_a_next_answer_does_not_end_a_turn():
    closed = "{% for m in messages %}{{ '<head>' + m.role + '\n' + m.content + '<eot>' }}{% endfor %}"
    opened = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    marks = ("</s>", "<head>", "<eot>", "<user>", "<assistant>")

    assert ends(closed + "<head>assistant\n", marks, eos="</s>") == {"<eot>"}
    assert ends(opened + "<assistant>", marks, eos="</s>") == set()


def test_one_mark_may_end_every_turn():
    template = (
        "{% for m in messages %}{{ 'GPT ' + m.role + ': ' + m.content + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'GPT assistant:' }}{% endif %}"
    )

    assert ends(template, ("</s>", "<end>"), eos="</s>") == {"<end>"}


def test_a_template_that_closes_no_turn_or_refuses_has_no_end_of_one():
    plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    refusing = "{{ raise_exception('No chats today') }}"

    assert ends(plain, ("</s>",), eos="</s>") == set()
    assert ends(refusing, ("</s>",), eos="</s>") == set()


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def family(name: str):
    return next(one for one in FAMILIES if one.name == name).tokenizer()


def refusal(action):
    with pytest.raises(DataError) as refused:
        action()
    return str(refused.value)


# Thoughts


THOUGHT = "<think>\nI saw it.\n</think>\n\nthe door is red."


def test_an_answer_that_begins_with_the_thought_that_is_asked_for_is_learnt_behind_it():
    tokenizer = family("deepseek_r1")

    tokens = demonstration({"messages": [user("What colour?"), assistant(THOUGHT)]}, tokenizer)

    assert unlearnt(tokenizer, tokens) == ["<s><|User|>What colour?<|Assistant|><think>\n"]
    assert learnt(tokenizer, tokens) == ["I saw it.\n</think>\n\nthe door is red.</s>"]
    assert answered([user("What colour?")], [assistant(THOUGHT)], tokenizer) == tokens


def test_the_last_turn_alone_is_advised_where_it_helps_and_nowhere_else():
    tokenizer = family("deepseek_r1")
    thoughtful = [user("What?"), assistant(THOUGHT), user("Sure?"), assistant(THOUGHT)]
    thoughtless = [user("What?"), assistant("red."), user("Sure?"), assistant("yes.")]

    assert refusal(lambda: demonstration({"messages": thoughtful}, tokenizer)) == (
        "chat template: the chat template renders an answer otherwise than it asks for it: asked with "
        "'<|Assistant|><think>\\n', answered with '<|Assistant|>\\n\\nthe door is red.</s><|Use'; learn the last turn "
        'alone (learn = "last"), or give the source of the policy another template: chat_template = "FILE"'
    )
    assert "learn = " not in refusal(lambda: demonstration({"messages": thoughtless}, tokenizer))
    last = demonstration({"messages": thoughtful}, tokenizer, "last")
    assert learnt(tokenizer, last) == ["I saw it.\n</think>\n\nthe door is red.</s>"]
    assert last.ids[: len(prompt_ids(tokenizer, thoughtful[:3]))] == prompt_ids(tokenizer, thoughtful[:3])


def test_thoughts_of_earlier_turns_are_learnt_as_they_stand_once_more_follows():
    tokenizer = family("qwen3")
    chat = [user("What?"), assistant(THOUGHT), user("Sure?"), assistant("yes.", reasoning_content="Indeed.")]

    tokens = demonstration({"messages": chat}, tokenizer)

    assert learnt(tokenizer, tokens) == [
        "the door is red.<|im_end|>",
        "<think>\nIndeed.\n</think>\n\nyes.<|im_end|>",
    ]


def test_calls_and_what_a_tool_says_are_told_apart():
    for name in ("qwen2_5", "qwen3", "llama3_1", "mistral_v3"):
        tokenizer = family(name)
        call = {"type": "function", "function": {"name": "look", "arguments": {"thing": "door"}}}
        tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
        chat = [
            user("What colour?"),
            assistant("", tool_calls=[call]),
            {"role": "tool", "content": "painted"},
            assistant("the door is red."),
        ]

        first, second = learnt(tokenizer, demonstration({"messages": chat, "tools": tools}, tokenizer))

        end = tokenizer.convert_ids_to_tokens(next(iter(turn_ends(tokenizer))))
        assert '{"thing": "door"}' in first
        assert first.count(end) == second.count(end) == 1
        assert first.endswith(end)
        assert second.endswith(f"the door is red.{end}")
        assert "painted" not in first + second


PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As templates of models that read images, too: contents are lists of parts."""


def test_a_template_that_reads_contents_in_parts_is_given_them_so():
    chat = {"messages": [user("What colour?"), assistant("red."), user("Still?"), assistant("yes.")]}
    in_parts, in_text = (make_tokenizer(template, CHATML_MARKS, eos="<|im_end|>") for template in (PARTS, CHATML))

    assert demonstration(chat, in_parts) == demonstration(chat, in_text)
    assert prompt_ids(in_parts, chat["messages"][:3]) == prompt_ids(in_text, chat["messages"][:3])


@pytest.mark.parametrize("template", ["{% for m in messages %}{% endfor %}", "{% for m in messages %}\n{% endfor %}"])
def test_a_template_that_writes_nothing_is_refused(template):
    tokenizer = make_tokenizer(template, CHATML_MARKS, eos="<|im_end|>")
    said = f"chat template: the chat template writes nothing for the chat; leave the row out, or {ANOTHER}"

    for encode in (
        lambda: demonstration({"messages": [user("a"), assistant("b")]}, tokenizer),
        lambda: demonstration({"prompt": [], "completion": [assistant("b")]}, tokenizer),
        lambda: prompt_ids(tokenizer, [user("a")]),
    ):
        with pytest.raises(DataError) as refused:
            encode()
        assert str(refused.value) == said


def test_calls_are_refused_where_the_template_has_no_place_for_them():
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    chat = [user("a"), assistant("", tool_calls=[call]), {"role": "tool", "content": "seen"}]

    with pytest.raises(DataError) as refused:
        prompt_ids(family("chatml"), chat)

    assert str(refused.value) == (
        "chat template: the row has calls of tools, and the chat template has no place for them; leave the row out, or "
        + ANOTHER
    )


def test_an_earlier_turn_that_is_rendered_otherwise_later_is_found_by_its_heading():
    template = (
        "{{ messages | length }}{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template, ("</s>", "<user>", "<assistant>"), eos="</s>")

    chat = [user("a"), assistant("a"), user("a"), assistant("b")]

    tokens, last = (demonstration({"messages": chat}, tokenizer, learn) for learn in ("all", "last"))

    assert decoded(tokenizer, tokens.ids) == "4<user>a</s><assistant>a</s><user>a</s><assistant>b</s>"
    assert learnt(tokenizer, tokens) == ["a</s>", "b</s>"]
    assert decoded(tokenizer, last.ids) == "3<user>a</s><assistant>a</s><user>a</s><assistant>b</s>"
    assert learnt(tokenizer, last) == ["b</s>"]


def test_a_template_whose_answers_cannot_be_found_is_refused_with_what_differs():
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = make_tokenizer(template, ("</s>",), eos="</s>")

    assert refusal(lambda: demonstration({"messages": [user("a"), assistant("b")]}, tokenizer)) == (
        "chat template: the chat template renders an answer otherwise than it asks for it: asked with '1a', answered "
        "with '2ab'; give the source of the policy another template: chat_template = \"FILE\""
    )


# Which turns are learnt


def test_what_follows_the_last_learnt_answer_is_no_part_of_the_row():
    tokenizer = make_tokenizer(CHATML, CHATML_MARKS, eos="<|endoftext|>")
    chat = [user("a"), assistant("b"), user("c"), assistant("d", weight=0), user("e")]

    for learn in ("all", "last"):
        tokens = demonstration({"messages": chat}, tokenizer, learn)
        assert decoded(tokenizer, tokens.ids).endswith("b<|im_end|>")
        assert learnt(tokenizer, tokens) == ["b<|im_end|>"]


def test_the_answer_of_a_pair_is_the_last_turn_of_the_assistant():
    tokenizer = make_tokenizer(CHATML, CHATML_MARKS, eos="<|endoftext|>")
    side = [assistant("b"), user("c"), assistant("d", weight=0), user("thanks")]

    assert learnt(tokenizer, answered([user("a")], side, tokenizer)) == ["d<|im_end|>"]
    assert answered_text([user("a")], side, tokenizer)[1] == "d<|im_end|>"


def test_a_completion_of_several_turns_is_learnt_whole_or_its_last_turn():
    tokenizer = make_tokenizer(CHATML, CHATML_MARKS, eos="<|endoftext|>")
    row = {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d"), user("e"), assistant("f")]}

    assert learnt(tokenizer, demonstration(row, tokenizer)) == ["d<|im_end|>", "f<|im_end|>"]
    assert learnt(tokenizer, demonstration(row, tokenizer, "last")) == ["f<|im_end|>"]


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        ([user("a")], "the chat has no answer of the assistant to learn from"),
        (
            [user("a"), assistant("b", weight=0)],
            "all answers of the chat have weight 0, so there is nothing to learn from",
        ),
    ],
)
def test_a_chat_that_teaches_nothing_is_refused(chat, problem):
    tokenizer = make_tokenizer(CHATML, CHATML_MARKS, eos="<|endoftext|>")

    assert refusal(lambda: demonstration({"messages": chat}, tokenizer)) == f"chat template: {problem}; leave it out"


def test_a_weight_is_shown_to_no_template_but_one_that_reads_it():
    plain = make_tokenizer("{{ messages[0] | tojson }}", ("</s>",), eos="</s>")
    reading = make_tokenizer("{{ messages[0].weight }}", ("</s>",), eos="</s>")
    chat = [assistant("b", weight=0)]

    assert rendered(plain, chat) == '{"role": "assistant", "content": "b"}'
    assert rendered(reading, chat) == "0"


# What a template raises


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('No chats today') }}", "No chats today"),
        ("{{ messages.first.second }}", "'list object' has no attribute 'first'"),
        ("{{ messages[0].content.nothing.further }}", "'str object' has no attribute 'nothing'"),
        (
            "{% for key, value in (messages[0].content | items) %}{% endfor %}",
            "Can only get item pairs from a mapping.",
        ),
        ("{{ messages[0].__class__.__bases__ }}", "access to attribute '__class__' of 'dict' object is unsafe."),
        ("{{ 1 / (messages | length - 1) }}", "division by zero"),
        ("{{ messages[0].content | int + messages }}", "unsupported operand type(s) for +: 'int' and 'list'"),
        ("{% if %}", "Expected an expression, got 'end of statement block'"),
    ],
)
def test_whatever_a_template_raises_is_told_with_the_place_of_the_row(template, said):
    tokenizer = make_tokenizer(template, ("</s>",), eos="</s>")
    row = Record.at("chats.jsonl:41", {"prompt": [user("a")]})

    assert refusal(lambda: prompts([row], tokenizer, 64)) == (
        f"chats.jsonl:41: the chat template refuses the chat: {said}; correct the row, or give the source of the "
        'policy another template: chat_template = "FILE"'
    )


def test_refused_rows_of_a_source_that_skips_bad_rows_are_left_out_and_counted():
    tokenizer = family("gemma2")
    system = {"role": "system", "content": "Be brief."}
    turns = [[user("a"), assistant("b")], [system, user("a"), assistant("b")]]
    rows = [Record.at("", {"messages": chat, "prompt": chat[:-1]}, skip=True) for chat in turns]
    pairs = [row.with_values({"prompt": row["prompt"], "chosen": "b", "rejected": "c"}) for row in rows]

    for kept, lengths in (
        demonstrations(rows, tokenizer, 64),
        prompts(rows, tokenizer, 64),
        preferences(pairs, tokenizer, 64),
    ):
        assert (len(kept), lengths.rows, lengths.refused) == (1, 1, 1)
    assert demonstrations(rows[1:], tokenizer, 64) == ([], LengthReport(64, refused=1))


# What reward models read


def test_a_reward_model_reads_an_answer_with_the_tools_that_it_could_call():
    tokenizer = family("qwen2_5")
    row = {"prompt": [user("a")], "tools": [{"type": "function", "function": {"name": "look"}}]}

    assert as_read(Answer("", "b", True, row), tokenizer) == answered(row["prompt"], "b", tokenizer, row["tools"]).ids
    assert '"look"' in decoded(tokenizer, as_read(Answer("", "b", False, row), tokenizer))


def test_an_answer_that_a_reward_models_template_would_render_otherwise_is_read_as_it_was_given():
    tokenizer = family("deepseek_r1")

    read = as_read(Answer("", "I saw it.</think>red.", True, {"prompt": [user("a")]}), tokenizer)

    assert decoded(tokenizer, read) == "<s><|User|>a<|Assistant|><think>\nI saw it.</think>red.</s>"


# What is told of a template


def test_a_heading_that_is_never_asked_with_is_found():
    assert learnt_heading(family("never_asks")) == "<|im_start|>assistant"
    assert [learnt_heading(family(name)) for name in ("chatml", "always_asks", "gemma2")] == ["", "", ""]


def test_keys_that_a_template_does_not_mention_are_found():
    keys = ["content", "name", "prefix", "reasoning_content", "role", "tool_calls", "weight"]

    assert unread_keys(family("chatml"), keys) == ["name", "prefix", "reasoning_content", "tool_calls"]
    assert unread_keys(family("qwen3"), keys) == ["prefix"]
    assert unread_keys(family("harmony"), ["reasoning_content", "thinking"]) == []
