"""Rows that are encoded once and lie in the run's cache."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from alignkit.contract.kinds import Demonstrations, Preferences
from alignkit.testing import RecordingStage, write_records
from alignkit.training.encoded import encode_once, encode_pairs_once
from alignkit.training.encoding import collected, demonstrations, encode_demonstrations, encode_pairs, side
from alignkit.training.tokenizers import open_tokenizer

CHAT = [{"role": "user", "content": "how are you?"}, {"role": "assistant", "content": "fine thanks"}]


def rows(count):
    return [{"prompt": f"how was day {i}?", "completion": " fine thanks" * (1 + i % 5)} for i in range(count)]


@pytest.fixture
def tokenizer(tiny_policy):
    return open_tokenizer(tiny_policy.path)


@pytest.fixture
def encode(tmp_path, tokenizer):
    """Encode demonstrations in a stage, and count how often that is done."""
    stage = RecordingStage(tmp_path / "stage")

    def made(given=None, limit=64, with_=tokenizer):
        if given is not None or not (tmp_path / "rows").exists():
            made.records = write_records(Demonstrations, tmp_path / "rows", given or rows(7))

        def anew(records):
            made.times += 1
            return (yield from encode_demonstrations(records.train(), with_, limit))

        found = encode_once(stage, made.records, with_, anew, limit)
        assert found.lengths == found.rows.lengths
        return found.rows

    made.times, made.cache = 0, stage.cache
    return made


@pytest.mark.parametrize("given", [rows(11), [{"messages": CHAT}, {"messages": CHAT * 2}]], ids=["strings", "chats"])
def test_what_is_read_is_what_was_encoded(encode, tokenizer, given):
    expected, lengths = demonstrations(encode(given) and encode.records.train(), tokenizer, 64)

    found = encode()

    assert list(found) == expected
    assert (len(found), found[-1], found[1:3]) == (len(expected), expected[-1], expected[1:3])
    assert found.lengths == lengths
    with pytest.raises(IndexError):
        found[len(found)]


def test_rows_are_encoded_once(encode):
    first, again = encode(), encode()

    assert encode.times == 1
    assert list(first) == list(again)


def test_rows_that_two_stages_want_at_the_same_time_are_encoded_once(tmp_path, tokenizer):
    records, times, inside = write_records(Demonstrations, tmp_path / "rows", rows(7)), [], threading.Barrier(2)

    def slowly(some):
        times.append(1)
        time.sleep(0.2)
        return (yield from encode_demonstrations(some.train(), tokenizer, 64))

    def read(place):
        inside.wait()
        return list(encode_once(RecordingStage(tmp_path / "stage"), records, tokenizer, slowly).rows)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(read, range(2))

    assert len(times) == 1
    assert first == second


def test_other_rows_another_limit_and_another_tokenizer_are_encoded_anew(encode, tokenizer):
    encode()
    encode(rows(8))
    encode(limit=9)
    tokenizer.add_tokens(["thanks"])

    encode()

    assert encode.times == 4


@pytest.mark.parametrize("file", ["tokens.bin", "learnt.bin", "ends.bin", "facts.json"])
def test_what_is_damaged_is_made_anew(encode, file):
    expected = list(encode())
    (damaged,) = encode.cache.glob(f"rows-*/{file}")
    content = damaged.read_bytes()
    damaged.write_bytes(bytes([content[0] ^ 1]) + content[1:])

    found = list(encode())

    assert encode.times == 2
    assert found == expected


def test_what_fails_leaves_nothing(encode, tmp_path, tokenizer):
    encode([{"messages": CHAT}])
    records = write_records(Demonstrations, tmp_path / "others", rows(5))

    def fails(some):
        yield from encode_demonstrations(some.train(), tokenizer, 64)
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        encode_once(RecordingStage(tmp_path / "stage"), records, tokenizer, fails)

    assert len(list(encode.cache.glob("rows-*/"))) == 1
    assert os.environ.get("TOKENIZERS_PARALLELISM", "false") == "false"


def test_tokens_take_no_more_bytes_than_they_need(encode):
    encode()

    (facts,) = encode.cache.glob("rows-*/facts.json")
    assert json.loads(facts.read_text("utf-8"))["kind"] == "uint16"


def test_pairs_are_read_with_their_rows(tmp_path, tokenizer):
    given = [
        {"prompt": f"how was day {i}?", "chosen": " fine", "rejected": " bad" * (1 + i), "p_chosen": 0.75}
        for i in range(5)
    ]
    records, stage = write_records(Preferences, tmp_path / "rows", given), RecordingStage(tmp_path / "stage")
    expected, lengths = collected(encode_pairs(records.train(), tokenizer, 20))

    for _ in range(2):
        found = encode_pairs_once(stage, records, tokenizer, 20, lambda pair: pair).rows
        assert list(found) == expected
        assert (found[-1], found[1:2]) == (expected[-1], expected[1:2])
        assert found.lengths == lengths
    assert len(list(stage.cache.glob("rows-*/"))) == 1


def test_batches_are_encoded_as_rows_are_one_by_one(tokenizer):
    chat = {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{"role": "assistant", "content": "bad"}]}
    given = [
        {"prompt": "how", "chosen": " fine", "rejected": "ly"},
        chat,
        {"prompt": "", "chosen": "a", "rejected": ""},
    ]

    together, _ = collected(encode_pairs(given, tokenizer, 64))

    assert [pair[:2] for pair in together] == [
        tuple(side(row, name, tokenizer) for name in ("chosen", "rejected")) for row in given
    ]


def test_a_row_of_which_the_first_token_alone_is_left_is_left_out(tokenizer):
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }}{% endfor %}"

    kept, lengths = demonstrations([{"messages": CHAT[1:]}], tokenizer, 1)

    assert (kept, lengths.dropped) == ([], 1)
