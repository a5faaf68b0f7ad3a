"""Records to tokens: answers and their ends are learnt, prompts are not; what does not fit is counted."""

from itertools import chain

import pytest
from transformers import AutoTokenizer

from alignkit.errors import DataError, RecipeError
from alignkit.training.encoding import (
    NOT_LEARNT,
    LengthReport,
    answered,
    demonstration,
    demonstrations,
    documents,
    fitting_length,
    pack,
    preferences,
    prompt_ids,
    prompts,
    report,
)
from alignkit.training.row_texts import parted, prompt_text
from alignkit.training.tokenizers import PLAIN_TEMPLATE

CHAT = [
    {"role": "user", "content": "how are you?"},
    {"role": "assistant", "content": "fine thanks"},
    {"role": "user", "content": "today?"},
    {"role": "assistant", "content": "always"},
]


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def learnt(tokenizer, tokens):
    return tokenizer.decode([label for label in tokens.labels if label != NOT_LEARNT])


def test_an_answer_and_its_end_are_learnt_and_the_prompt_is_not(tokenizer):
    tokens = demonstration({"prompt": "how are you?", "completion": " fine thanks"}, tokenizer)

    assert tokenizer.decode(tokens.ids) == "how are you? fine thanks<eos>"
    assert learnt(tokenizer, tokens) == " fine thanks<eos>"


def test_an_answer_that_ends_already_is_not_ended_twice(tokenizer):
    tokens = answered("how are you?", " fine<eos>", tokenizer)

    assert tokenizer.decode(tokens.ids) == "how are you? fine<eos>"


def test_a_prompt_is_encoded_as_it_would_be_asked_even_where_tokens_would_merge(tokenizer):
    tokens = answered("how are y", "ou", tokenizer)

    assert tokens.ids[: len(prompt_ids(tokenizer, "how are y"))] == prompt_ids(tokenizer, "how are y")
    assert learnt(tokenizer, tokens) == "ou<eos>"


def test_a_bare_answer_follows_the_end_of_nothing(tokenizer):
    tokens = answered("", "fine", tokenizer)

    assert tokenizer.decode(tokens.ids) == "<eos>fine<eos>"
    assert learnt(tokenizer, tokens) == "fine<eos>"


def test_all_that_the_assistant_says_is_learnt(tokenizer):
    tokens = demonstration({"messages": CHAT}, tokenizer, "all")

    assert learnt(tokenizer, tokens) == "fine thanks<eos>always<eos>"


def test_the_last_turn_alone_is_learnt(tokenizer):
    tokens = demonstration({"messages": CHAT}, tokenizer, "last")

    assert learnt(tokenizer, tokens) == "always<eos>"


def test_the_plain_template_shows_roles_as_headings(tokenizer):
    tokens = demonstration({"messages": CHAT[:2]}, tokenizer)

    assert tokenizer.decode(tokens.ids) == "### User:\nhow are you?\n\n### Assistant:\nfine thanks<eos>"


def test_a_chat_begins_with_the_tokens_that_a_policy_would_be_asked_with(tokenizer):
    tokens = demonstration({"messages": CHAT[:2]}, tokenizer)
    asked = prompt_ids(tokenizer, CHAT[:1])

    assert tokens.ids[: len(asked)] == asked
    assert tokens.labels[: len(asked) + 1] == [NOT_LEARNT] * len(asked) + tokens.ids[len(asked) : len(asked) + 1]


def test_a_template_that_closes_no_answer_is_helped_out(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }} {% endfor %}"
    try:
        tokens = demonstration({"messages": CHAT[:2]}, tokenizer)
    finally:
        tokenizer.chat_template = PLAIN_TEMPLATE

    assert tokens.ids[-1] == tokens.labels[-1] == tokenizer.eos_token_id


def test_a_chat_prompt_is_text_with_the_opening_of_an_answer(tokenizer):
    assert prompt_text(tokenizer, CHAT[:1]) == "### User:\nhow are you?\n\n### Assistant:\n"


def test_a_string_prompt_is_never_templated(tokenizer):
    assert prompt_text(tokenizer, "how are you?") == "how are you?"


def test_a_chat_and_a_string_are_joined_as_a_chat(tokenizer):
    assert tokenizer.decode(answered(CHAT[:1], "fine", tokenizer).ids) == (
        "### User:\nhow are you?\n\n### Assistant:\nfine<eos>"
    )


def test_a_demonstration_that_is_too_long_loses_its_end_and_is_counted(tokenizer):
    rows = [{"prompt": " how", "completion": " fine" * n} for n in (1, 9)]

    kept, lengths = demonstrations(rows, tokenizer, 5)

    assert [len(tokens.ids) for tokens in kept] == [3, 5]
    assert lengths == LengthReport(limit=5, rows=2, cut=1, longest=11)


def test_a_demonstration_whose_answer_does_not_fit_is_left_out_and_counted(tokenizer):
    kept, lengths = demonstrations([{"prompt": " how" + " are" * 9, "completion": " fine"}], tokenizer, 5)

    assert kept == []
    assert lengths == LengthReport(limit=5, rows=1, dropped=1, longest=12)


def test_a_pair_with_a_side_that_is_too_long_is_left_out_and_counted(tokenizer):
    rows = [{"prompt": " how", "chosen": " fine", "rejected": " bad" * n} for n in (1, 9)]

    kept, lengths = preferences(rows, tokenizer, 5)

    assert [tokenizer.decode(pair.rejected) for pair in kept] == [" how bad<eos>"]
    assert lengths == LengthReport(limit=5, rows=2, dropped=1, longest=11)


def test_a_prompt_that_is_too_long_is_left_out_and_counted(tokenizer):
    kept, lengths = prompts([{"prompt": " how"}, {"prompt": " how" + " are" * 9}], tokenizer, 5)

    assert [prompt.text for prompt in kept] == [" how"]
    assert lengths == LengthReport(limit=5, rows=2, dropped=1, longest=10)


def test_what_does_not_fit_is_told(stage):
    report(stage, "demonstrations", LengthReport(64, rows=1000, cut=10, dropped=5, longest=90), 0.05)

    assert stage.warnings == [
        (
            "of 1000 demonstrations, 10 cut short and 5 left out: they do not fit in max_length 64 "
            "(the longest has 90 tokens)",
            "raise max_length if they matter",
        )
    ]


def test_too_much_that_does_not_fit_is_refused(stage):
    with pytest.raises(DataError) as caught:
        report(stage, "pairs", LengthReport(64, rows=100, dropped=6, longest=90), 0.05)

    assert str(caught.value) == (
        "of 100 pairs, 6 left out: they do not fit in max_length 64 (the longest has 90 tokens); "
        "raise max_length, or max_lost (now 0.05) if that is meant"
    )


def test_no_rows_at_all_are_refused(stage):
    with pytest.raises(DataError) as caught:
        report(stage, "pairs", LengthReport(64), 0.05)

    assert str(caught.value) == "there are no pairs to learn from; check the source and held_out"


def test_packing_loses_no_token_and_its_last_block_is_short(tokenizer):
    encoded = list(documents([" the food was good", " it was cold", " fine"], tokenizer))

    blocks = list(pack(encoded, 4))

    assert list(chain.from_iterable(blocks)) == list(chain.from_iterable(encoded))
    assert [len(block) for block in blocks] == [4, 4, 3]


def test_documents_are_closed(tokenizer):
    assert [ids[-1] for ids in documents(["the food", "it<eos>"], tokenizer)] == [tokenizer.eos_token_id] * 2


def test_the_longest_sequence_is_what_the_model_reads_at_most_1024():
    assert [fitting_length(512, None), fitting_length(8192, None), fitting_length(None, None)] == [512, 1024, 1024]


def test_a_length_beyond_the_model_is_refused():
    with pytest.raises(RecipeError) as caught:
        fitting_length(512, 600)

    assert str(caught.value) == "max_length: the model reads at most 512 tokens; set it to 512 or less"


def test_a_demonstration_is_parted_before_the_last_answer():
    assert parted({"messages": CHAT}) == (CHAT[:3], CHAT[3:])


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "weather"}}]}
WITH_TOOLS = (
    "{% for t in tools %}tool {{ t.function.name }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}call {{ c.function.name }}{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_the_tools_stand_before_a_chat_and_its_calls_are_learnt(tokenizer):
    chat = [CHAT[0], CALL, {"role": "tool", "content": "sun"}, {"role": "assistant", "content": "fine"}]
    tokenizer.chat_template = WITH_TOOLS
    try:
        tokens = demonstration({"messages": chat, "tools": TOOLS}, tokenizer)
    finally:
        tokenizer.chat_template = PLAIN_TEMPLATE

    assert tokenizer.decode(tokens.ids) == (
        "tool weather\nuser: how are you?;assistant: call weather;tool: sun;assistant: fine;<eos>"
    )
    assert learnt(tokenizer, tokens) == "call weather;fine;<eos>"


def test_tools_that_the_template_would_leave_out_are_refused(tokenizer):
    with pytest.raises(DataError) as refused:
        demonstration({"messages": CHAT[:2], "tools": TOOLS}, tokenizer)

    assert str(refused.value) == (
        "chat template: the row has tools, and the chat template has no place for them; take the column tools out, or "
        'give the source of the policy another template: chat_template = "FILE"'
    )
