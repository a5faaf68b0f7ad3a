"""What is learnt of chats, by the templates of many families: exactly what follows what a policy is asked with."""

from typing import Any

import pytest
from chat_families import FAMILIES, FOLDER, Family
from chat_tokenizers import decoded, learnt, unlearnt

from alignkit.errors import DataError
from alignkit.training import encoding, rows
from alignkit.training.encoding import (
    AskedPrompt,
    demonstration,
    demonstrations,
    encode_pairs,
    preferences,
    prompt_ids,
    prompts,
    turn_ends,
)

QUESTION, ANSWER, OTHER = "What colour is the door?", "the door is red.", "I do not know."
USER = {"role": "user", "content": QUESTION}
ASSISTANT = {"role": "assistant", "content": ANSWER}
LONG = 1024
PAIR = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": OTHER}]}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
that_asks_as_it_renders = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if not family.refuses], ids=lambda family: family.name
)
that_does_not = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.refuses], ids=lambda family: family.name
)


def asked(family: Family) -> str:
    return family.asked.format(q=QUESTION)


def said(family: Family, answer: str = ANSWER) -> str:
    return family.said.format(a=answer)


def test_every_template_is_tried() -> None:
    assert sorted(family.name for family in FAMILIES) == sorted(file.stem for file in FOLDER.glob("*.jinja"))


@every_family
def test_the_token_that_ends_a_turn_is_found(family: Family) -> None:
    tokenizer = family.tokenizer()

    assert [tokenizer.convert_ids_to_tokens(token) for token in turn_ends(tokenizer)] == [family.end] * bool(family.end)


@every_family
def test_a_prompt_is_what_a_policy_is_asked_with(family: Family) -> None:
    tokenizer = family.tokenizer()

    (prompt,), lengths = prompts([{"prompt": [USER]}], tokenizer, LONG)

    assert (prompt.text, decoded(tokenizer, prompt.ids), lengths.dropped) == (asked(family), asked(family), 0)


@every_family
def test_an_evaluation_asks_the_same(family: Family) -> None:
    tokenizer = family.tokenizer()
    row = {"prompt": [USER]}
    long = len(prompt_ids(tokenizer, [USER]))

    assert encoding.asked_of_all([row], [AskedPrompt(tokenizer, long + 8)], 1, 8)[0] == [row]
    assert encoding.asked_of_all([row], [AskedPrompt(tokenizer, long + 8)], 1, 9)[0] == []


@that_asks_as_it_renders
def test_a_demonstration_teaches_the_answer_and_its_end_behind_what_a_policy_is_asked_with(family: Family) -> None:
    tokenizer = family.tokenizer()

    tokens = demonstration({"messages": [USER, ASSISTANT]}, tokenizer)

    assert learnt(tokenizer, tokens) == [said(family)]
    assert unlearnt(tokenizer, tokens) == [asked(family)]
    assert tokens.ids[: len(prompt_ids(tokenizer, [USER]))] == prompt_ids(tokenizer, [USER])


@that_asks_as_it_renders
def test_of_several_turns_each_answer_is_learnt_as_it_stands(family: Family) -> None:
    tokenizer = family.tokenizer()
    chat = [USER, {**ASSISTANT, "content": OTHER}, USER, ASSISTANT]

    tokens = demonstration({"messages": chat}, tokenizer)

    assert learnt(tokenizer, tokens) == [family.said_earlier.format(a=OTHER), said(family)]
    assert unlearnt(tokenizer, tokens)[0] == asked(family)


@that_asks_as_it_renders
def test_the_last_turn_alone_is_learnt_behind_all_that_a_policy_is_asked_with(family: Family) -> None:
    tokenizer = family.tokenizer()
    chat = [USER, {**ASSISTANT, "content": OTHER}, USER, ASSISTANT]

    tokens = demonstration({"messages": chat}, tokenizer, "last")

    assert learnt(tokenizer, tokens) == [said(family)]
    assert tokens.ids[: len(prompt_ids(tokenizer, chat[:3]))] == prompt_ids(tokenizer, chat[:3])


@that_asks_as_it_renders
def test_a_turn_of_weight_0_is_not_learnt(family: Family) -> None:
    tokenizer = family.tokenizer()
    chat = [USER, {**ASSISTANT, "content": OTHER, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]

    weighted = demonstration({"messages": chat}, tokenizer)

    assert learnt(tokenizer, weighted) == [said(family)]
    assert weighted == demonstration({"messages": chat}, tokenizer, "last")


@that_asks_as_it_renders
def test_the_sides_of_a_pair_are_what_is_asked_and_the_answers(family: Family) -> None:
    tokenizer = family.tokenizer()

    (scored,), _ = preferences([PAIR], tokenizer, LONG)
    compared = rows.pair_of(next(encode_pairs([PAIR], tokenizer, LONG)))

    assert decoded(tokenizer, scored.chosen) == asked(family) + said(family)
    assert decoded(tokenizer, scored.rejected) == asked(family) + said(family, OTHER)
    assert compared.chosen.prompt == compared.rejected.prompt == prompt_ids(tokenizer, [USER])
    assert decoded(tokenizer, compared.chosen.answer) == said(family)
    assert decoded(tokenizer, compared.rejected.answer) == said(family, OTHER)


@that_does_not
@pytest.mark.parametrize("encode", ["sft", "reward", "dpo"])
def test_an_answer_that_is_not_rendered_as_it_is_asked_for_is_refused(family: Family, encode: str) -> None:
    tokenizer = family.tokenizer()
    encoders: dict[str, Any] = {
        "sft": lambda: demonstrations([{"messages": [USER, ASSISTANT]}], tokenizer, LONG),
        "reward": lambda: preferences([PAIR], tokenizer, LONG),
        "dpo": lambda: next(encode_pairs([PAIR], tokenizer, LONG)),
    }

    with pytest.raises(DataError) as refused:
        encoders[encode]()

    assert str(refused.value) == (
        f"chat template: the chat template renders an answer otherwise than it asks for it: {family.refuses}; "
        'give the source of the policy another template: chat_template = "FILE"'
    )


@every_family
def test_a_system_turn_is_asked_with_or_refused(family: Family) -> None:
    chat = [{"role": "system", "content": "Answer in one line."}, USER]

    if family.refuses_system:
        with pytest.raises(DataError) as refused:
            prompts([{"prompt": chat}], family.tokenizer(), LONG)
        assert str(refused.value) == (
            f"chat template: the chat template refuses the chat: {family.refuses_system}; correct the row, or give the "
            'source of the policy another template: chat_template = "FILE"'
        )
    else:
        (prompt,), _ = prompts([{"prompt": chat}], family.tokenizer(), LONG)
        assert "Answer in one line." in prompt.text


@every_family
def test_tools_are_shown_in_every_kind_of_rows_or_refused(family: Family) -> None:
    tokenizer = family.tokenizer()
    tooled: dict[str, Any] = {**PAIR, "messages": [USER, ASSISTANT], "tools": TOOLS}

    if family.tools:
        (prompt,), _ = prompts([tooled], tokenizer, LONG)
        (pair,), _ = preferences([tooled], tokenizer, LONG)
        (rated, _), _ = rows._judged(rows._alone(iter([tooled])), tokenizer, LONG)
        shown = demonstration(tooled, tokenizer).ids
        assert '"look"' in prompt.text
        assert shown[: len(prompt.ids)] == pair.chosen[: len(prompt.ids)] == rated.prompt == prompt.ids
    else:
        with pytest.raises(DataError) as refused:
            prompts([tooled], tokenizer, LONG)
        assert str(refused.value) == (
            "chat template: the row has tools, and the chat template has no place for them; take the column tools out, "
            'or give the source of the policy another template: chat_template = "FILE"'
        )


def test_where_a_template_marks_what_is_generated_that_is_what_is_learnt() -> None:
    (family,) = (family for family in FAMILIES if family.name == "marks_what_is_generated")
    tokenizer, chat = family.tokenizer(), [USER, ASSISTANT, USER, ASSISTANT]

    marked: Any = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    tokens = demonstration({"messages": chat}, tokenizer)

    assert [label != encoding.NOT_LEARNT for label in tokens.labels] == list(map(bool, marked["assistant_masks"][:-1]))
    assert tokens.ids == marked["input_ids"][:-1]  # but the line's end behind the last turn
