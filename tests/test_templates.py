"""Chats rendered by anybody's template: what ends an answer, what is learnt, and what a template refuses."""

import pytest
from chat_tokenizers import make_tokenizer

from alignkit.learn.data import turn_ends
from alignkit.learn.models import PLAIN_TEMPLATE

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
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
