"""What `alignkit check` shows of training is what is trained on: golden samples, and the trainer's own labels."""

from pathlib import Path
from typing import Any

import pytest

from alignkit.check.show import show_preview
from alignkit.contract.kinds import Demonstrations, Preferences, Prompts
from alignkit.contract.settings import Settings
from alignkit.learn import trainers
from alignkit.learn.models import PLAIN_TEMPLATE, load_policy, open_tokenizer
from alignkit.learn.preview import pieces, preview, sequences, steps
from alignkit.methods.sft import SFTSettings, sft
from alignkit.testing import RecordingStage, run_method

CHAT = [
    {"role": "user", "content": "how are you?"},
    {"role": "assistant", "content": "fine"},
    {"role": "user", "content": "good"},
    {"role": "assistant", "content": "yes"},
]
PLAIN = {"prompt": "the food", "completion": " was good"}


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


def test_what_is_shown_as_learnt_is_what_the_trainer_learns(
    tiny_policy: Any, stage: RecordingStage, records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [PLAIN, {"prompt": "my room", "completion": " is warm"}, {"prompt": "no", "completion": " rain today"}]
    given = records(Demonstrations, rows)
    _, tokenizer = load_policy(tiny_policy)
    trained: list[tuple[list[int], list[int]]] = []

    def watched(make: Any, stage: Any) -> None:
        data = make().get_train_dataloader()
        for batch in data:
            for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
                kept = mask.bool()
                trained.append((ids[kept].tolist(), labels[kept].tolist()))

    monkeypatch.setattr(trainers, "run_trainer", watched)
    run_method(sft, {"epochs": 1, "batch": 3, "precision": "fp32"}, stage, policy=tiny_policy, demos=given)

    expected = [tokens for row in rows for _, tokens in sequences(Demonstrations, row, tokenizer)]
    assert sorted(trained) == sorted((tokens.ids, tokens.labels) for tokens in expected)


def test_rows_that_do_not_fit_are_counted(tiny_policy: Any, records: Any) -> None:
    given = records(Demonstrations, [PLAIN, {"prompt": "the food", "completion": " was good" * 9}])

    found = preview(tiny_policy, given, SFTSettings(max_length=12))

    assert (found.counted, found.over, found.limit) == (2, 1, 12)


def test_lengths_are_counted_and_what_is_too_long_is_told(tiny_policy: Any, records: Any) -> None:
    rows = [{"prompt": "the food", "completion": " was good" * times} for times in (1, 1, 30)]
    asked = [{"prompt": "the food " * times} for times in (1, 30)]

    cut = preview(tiny_policy, records(Demonstrations, rows), SFTSettings(max_length=20))
    dropped = preview(tiny_policy, records(Prompts, asked), SFTSettings(max_length=20))

    assert (cut.counted, cut.over, sum(cut.lengths)) == (3, 1, 3)
    told = (
        "  !  1 of 3 rows are longer than that, and lose their end, or are left out where nothing of the answer remains"
    )
    assert told in show_preview("s", "d", cut, 1, colour=False)
    assert "  !  1 of 2 rows are longer than that, and are left out whole; none is cut" in show_preview(
        "s", "d", dropped, None, colour=False
    )


def test_rows_with_a_special_token_as_text_are_counted(tiny_policy: Any, records: Any) -> None:
    rows = [PLAIN, {"prompt": "the food", "completion": " was good<eos>"}]

    assert preview(tiny_policy, records(Demonstrations, rows), SFTSettings()).special == 1


def test_steps_are_those_of_whole_epochs() -> None:
    assert steps(Demonstrations, 33, SFTSettings(batch=16, epochs=2)) == 6
    assert steps(Demonstrations, 33, Settings()) is None


def test_nothing_in_a_sample_moves_the_cursor(tiny_policy: Any, records: Any) -> None:
    given = records(Demonstrations, [{"prompt": "a", "completion": "\x1b[31mred"}])

    lines = show_preview("s", "d", preview(tiny_policy, given, SFTSettings()), 1, colour=False)

    assert "\x1b" not in "".join(lines)
    assert any("\\x1b[31mred" in line for line in lines)


def test_a_tokenizer_without_a_template_gets_the_plain_one(tiny_policy: Any) -> None:
    assert open_tokenizer(Path(tiny_policy.path)).chat_template == PLAIN_TEMPLATE
