"""What `alignkit check` shows of training is what is trained on: golden samples, and the trainer's own labels."""

from pathlib import Path
from typing import Any

import pytest

from alignkit.contract.kinds import Demonstrations, Preferences, Prompts, Text
from alignkit.contract.needs import TrainerNeeds
from alignkit.estimate import counting
from alignkit.estimate.counting import Counted, Lengths, RowCounts, count, sequences
from alignkit.estimate.encoded_rows import pieces, preview, steps
from alignkit.estimate.preview import Preview
from alignkit.methods.clm import CLMSettings, clm
from alignkit.methods.ppo import PPOSettings, ppo
from alignkit.methods.reward import RewardSettings, reward
from alignkit.methods.sft import SFTSettings, sft
from alignkit.show.audit_lines import show_preview
from alignkit.testing import RecordingStage, run_method, write_tiny_policy
from alignkit.training import likelihood
from alignkit.training.tokenizers import PLAIN_TEMPLATE, open_tokenizer

CHAT = [
    {"role": "user", "content": "how are you?"},
    {"role": "assistant", "content": "fine"},
    {"role": "user", "content": "good"},
    {"role": "assistant", "content": "yes"},
]
PLAIN = {"prompt": "the food", "completion": " was good"}


METHODS = {CLMSettings: clm, PPOSettings: ppo, RewardSettings: reward, SFTSettings: sft}


def previewed(policy: Any, records: Any, settings: Any) -> Preview:
    rows = RowCounts(len(list(records.train())), len(list(records.held_out())))
    needs = METHODS[type(settings)].needs(settings)
    return preview(policy, records, needs, count(records, rows, open_tokenizer(policy.path)), rows)


def shown(kind: type, row: Any, tokenizer: Any) -> list[str]:
    return [
        f"{role}: " + "".join(f"⟦{piece.text}⟧" if piece.learnt else piece.text for piece in pieces(tokens, tokenizer))
        for role, tokens in sequences(kind, row, tokenizer)
    ]


@pytest.mark.parametrize(
    ("kind", "row", "golden"),
    [
        (Demonstrations, PLAIN, ["demonstration: the food⟦ was good<eos>⟧"]),
        (
            Demonstrations,
            {"messages": CHAT},
            [
                "demonstration: ### User:\nhow are you?\n\n### Assistant:\n⟦fine<eos>⟧\n\n"
                "### User:\ngood\n\n### Assistant:\n⟦yes<eos>⟧"
            ],
        ),
        (
            Preferences,
            {"prompt": "the food", "chosen": " was good", "rejected": " was bad"},
            ["chosen: the food⟦ was good<eos>⟧", "rejected: the food⟦ was bad<eos>⟧"],
        ),
        (Prompts, {"prompt": CHAT[:1]}, ["prompt: ### User:\nhow are you?\n\n### Assistant:\n"]),
    ],
)
def test_a_row_is_shown_as_the_model_sees_it(tiny_policy: Any, kind: type, row: Any, golden: list[str]) -> None:
    assert shown(kind, row, open_tokenizer(tiny_policy.path)) == golden


TOOLS = [{"type": "function", "function": {"name": "rain", "parameters": {}}}]
WITH_TOOLS = "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}" + PLAIN_TEMPLATE
"""A chat template that lists the tools first."""
FORMS: dict[str, list[Any]] = {
    "plain": [PLAIN, {"prompt": "my room", "completion": " is warm"}, {"prompt": "no", "completion": " rain today"}],
    "chat": [{"messages": CHAT[:2]}, {"messages": [{"role": "system", "content": "warm"}, *CHAT[:2]]}],
    "turns": [{"messages": CHAT}, {"messages": [*CHAT, *CHAT]}],
    "weights": [{"messages": [CHAT[0], {**CHAT[1], "weight": 0}, *CHAT[2:]]}, {"messages": CHAT}],
    "tools": [{"messages": CHAT, "tools": TOOLS}, {"messages": CHAT[:2], "tools": TOOLS}],
}


@pytest.mark.parametrize("learn", ["all", "last"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_shown_as_learnt_is_what_is_learnt(
    tmp_path: Path, stage: RecordingStage, records: Any, monkeypatch: pytest.MonkeyPatch, form: str, learn: Any
) -> None:
    policy = write_tiny_policy(tmp_path / "model")
    tokenizer = open_tokenizer(policy.path)
    tokenizer.chat_template = WITH_TOOLS
    tokenizer.save_pretrained(policy.path)
    given = records(Demonstrations, FORMS[form])
    trained: list[tuple[list[int], list[int]]] = []

    def watched(model: Any, rows: Any, *_: Any) -> None:
        trained.extend((row.ids, row.labels) for row in rows)

    monkeypatch.setattr(likelihood, "teach", watched)
    run_method(sft, {"epochs": 1, "batch": 3, "precision": "fp32", "learn": learn}, stage, policy=policy, demos=given)

    expected = [tokens for row in FORMS[form] for _, tokens in sequences(Demonstrations, row, tokenizer, learn)]
    assert sorted(trained) == sorted((tokens.ids, tokens.labels) for tokens in expected)
    assert all(0 < sum(label >= 0 for label in labels) < len(labels) for _, labels in trained)


def test_rows_that_do_not_fit_are_counted(tiny_policy: Any, records: Any) -> None:
    given = records(Demonstrations, [PLAIN, {"prompt": "the food", "completion": " was good" * 9}])

    found = previewed(tiny_policy, given, SFTSettings(max_length=12))

    assert (found.counted, found.over, found.limit) == (2, 1, 12)


def test_lengths_are_counted_and_what_is_too_long_is_told(tiny_policy: Any, records: Any) -> None:
    rows = [{"prompt": "the food", "completion": " was good" * times} for times in (1, 1, 30)]
    asked = [{"prompt": "the food " * times} for times in (1, 30)]

    cut = previewed(tiny_policy, records(Demonstrations, rows), SFTSettings(max_length=20))
    dropped = previewed(tiny_policy, records(Prompts, asked), SFTSettings(max_length=20))

    assert (cut.counted, cut.over, sum(cut.lengths)) == (3, 1, 3)
    told = show_preview("s", "d", cut, colour=False)
    assert "  !  1 of 3 rows are longer than 20 tokens, and lose their end" in told
    told = show_preview("s", "d", dropped, colour=False)
    assert "  !  1 of 2 rows are longer than 20 tokens, and are left out whole; none is cut" in told


def test_rows_with_a_special_token_as_text_are_counted(tiny_policy: Any, records: Any) -> None:
    rows = [PLAIN, {"prompt": "the food", "completion": " was good<eos>"}]

    assert previewed(tiny_policy, records(Demonstrations, rows), SFTSettings()).special == 1


def test_pairs_that_the_template_makes_equal_are_counted(tmp_path: Path, records: Any) -> None:
    policy = write_tiny_policy(tmp_path / "model")
    tokenizer = open_tokenizer(policy.path)
    tokenizer.chat_template = PLAIN_TEMPLATE.replace("message['content']", "(message['content'] | trim)")
    tokenizer.save_pretrained(policy.path)
    sides = {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "yes"), ("rejected", "yes "))}

    found = previewed(policy, records(Preferences, [{"prompt": CHAT[:1], **sides}]), RewardSettings())

    assert found.same == 1
    assert "  !  1 of 1 pairs are the same to the model, and teach nothing; take them out" in show_preview(
        "s", "d", found, colour=False
    )


def lengths(*tokens: int) -> tuple[Lengths, ...]:
    return tuple(Lengths(0, each, each, each) for each in tokens)


@pytest.mark.parametrize(
    ("kind", "settings", "taken"),
    [
        (Demonstrations, SFTSettings(batch=16, epochs=2), 6),
        (Text, CLMSettings(batch=2, epochs=1), 5),  # 2 * 90 tokens in blocks of 20, two at a time
        (Prompts, PPOSettings(updates=7), 7),
        (Prompts, None, None),
    ],
)
def test_steps_are_those_of_whole_epochs_blocks_or_updates(kind: type, settings: Any, taken: int | None) -> None:
    counted = Counted(2, lengths(40, 50), lengths(1), 0)
    needs = settings and METHODS[type(settings)].needs(settings)

    assert steps(kind, 33, needs, counted, 20) == taken


def test_pairs_that_are_taken_apart_are_two_rows_each() -> None:
    needs = TrainerNeeds(batch=16, epochs=1, apart=True)

    assert steps(Preferences, 33, needs, Counted(2, lengths(40, 50), lengths(1), 0), 20) == 5


def test_of_many_rows_a_part_is_counted_spread_evenly(
    tiny_policy: Any, records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "MOST", 2)
    given = records(Demonstrations, [{"prompt": "the food", "completion": " was good" * (1 + n)} for n in range(6)])

    found = previewed(tiny_policy, given, SFTSettings())

    assert (found.counted, found.of) == (2, 6)
    assert found.longest == len(open_tokenizer(tiny_policy.path)("the food" + " was good" * 4)["input_ids"]) + 1
    assert "tokens in 2 of 6 rows" in show_preview("s", "d", found, colour=False)[0]


def test_nothing_in_a_sample_moves_the_cursor(tiny_policy: Any, records: Any) -> None:
    given = records(Demonstrations, [{"prompt": "a", "completion": "\x1b[31mred"}])

    lines = show_preview("s", "d", previewed(tiny_policy, given, SFTSettings()), colour=False)

    assert "\x1b" not in "".join(lines)
    assert any("\\x1b[31mred" in line for line in lines)


def test_of_a_long_text_beginning_and_end_are_shown(tiny_policy: Any, records: Any) -> None:
    given = records(Demonstrations, [{"prompt": "the food", "completion": " was good" * 300}])

    lines = show_preview("s", "d", previewed(tiny_policy, given, SFTSettings()), colour=False)

    (sample,) = [line for line in lines if "[... " in line]
    assert sample.startswith("    the food⟦ was good was good")
    assert sample.endswith("was good<eos>⟧")
    assert len(sample) < 1300


def test_a_tokenizer_without_a_template_gets_the_plain_one(tiny_policy: Any) -> None:
    assert open_tokenizer(Path(tiny_policy.path)).chat_template == PLAIN_TEMPLATE
