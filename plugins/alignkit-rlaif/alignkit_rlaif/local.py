"""A policy that judges: how likely it is to answer A or B, read off its probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from alignkit import Answer, Judge, JudgeClient, Policy, Precision, Question, Settings, Verdict, judge_scheme
from alignkit_rlaif import wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_AT_ONCE = 2**14


class PolicyJudgeSettings(Settings):
    """What a source says of `policy:` judges."""

    load: Literal["4bit", "8bit"] | None = None
    """Quantise its weights while loading (needs bitsandbytes and a GPU)."""
    precision: Precision = "auto"
    """Arithmetic of judging."""
    text_tokens: PositiveInt = 256
    """Length of a critique or a revision."""
    principles: tuple[str, ...] = ()
    """By what it rates, one rating for each; the mean counts."""


@judge_scheme("policy", policy=True)
def policy(judge: Judge, settings: PolicyJudgeSettings, cache: Path | None) -> JudgeClient:
    """Ask a policy of this machine, without sampling: the probabilities of its options are the verdict."""
    opened = Policy(name=judge.name, fingerprint=judge.fingerprint, path=judge.path, load=settings.load)
    return open_policy(opened, settings)


def open_policy(judging: Policy, settings: PolicyJudgeSettings) -> JudgeClient:
    """Make a judge of a policy."""
    from alignkit.kit import load_policy, sample_answers

    model, tokenizer = load_policy(judging, precision=settings.precision, trainable=False)

    def compare(questions: Sequence[Question]) -> list[Verdict]:
        chats = [wording.comparing(question) for question in questions]
        return [_verdict(shares) for shares in option_shares(model, tokenizer, chats, wording.LETTERS)]

    def rate(answers: Sequence[Answer], principle: str) -> list[float | None]:
        by = [principle] if principle else list(settings.principles) or [""]
        chats = [wording.rating(answer, one) for answer in answers for one in by]
        shares = option_shares(model, tokenizer, chats, wording.GRADES)
        return [_grade(shares[start : start + len(by)]) for start in range(0, len(shares), len(by))]

    def write(chats: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        rows = [{"prompt": [dict(turn) for turn in chat]} for chat in chats]
        found = sample_answers(model, tokenizer, rows, max_new_tokens=settings.text_tokens)
        return [one.text for (one,) in found]

    return JudgeClient(compare, rate, write)


def _verdict(shares: Sequence[float]) -> Verdict:
    mass = sum(shares)
    return Verdict(shares[0] / mass, min(mass, 1.0)) if mass > 0 else Verdict(None, 0.0)


def _grade(several: Sequence[Sequence[float]]) -> float | None:
    valid = [wording.scaled(shares) for shares in several if sum(shares) > 0]
    return fmean(valid) if valid else None


def option_shares(
    model: Any, tokenizer: PreTrainedTokenizerBase, chats: Sequence[wording.Chat], options: Sequence[str]
) -> list[list[float]]:
    """Return the probability of each option as the reply to each chat; 0 to all where a chat is longer than the model.

    An option is read in its context: what the tokenizer makes of chat and option together, less what all options
    share.
    """
    import torch

    from alignkit.kit import answer_logprobs

    encoded = [option_tokens(tokenizer, chat, options) for chat in chats]
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    fitting = [
        i for i, rows in enumerate(encoded) if longest is None or max(len(p) + len(a) for p, a in rows) <= longest
    ]
    shares = [[0.0] * len(options) for _ in chats]
    with torch.no_grad():
        for group in _at_once(fitting, [len(rows[0][0]) for rows in encoded]):
            rows = [row for i in group for row in encoded[i]]
            table = answer_logprobs(model, [prompt for prompt, _ in rows], [answer for _, answer in rows])
            sums = table.sum(dim=1).exp().view(len(group), len(options)).tolist()
            for i, found in zip(group, sums, strict=True):
                shares[i] = found
    return shares


def option_tokens(
    tokenizer: PreTrainedTokenizerBase, chat: wording.Chat, options: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """Encode a chat with each option behind it, parted where the options begin to differ."""
    from alignkit.kit import prompt_text

    opened = prompt_text(tokenizer, chat)
    whole = [list(tokenizer(opened + option, add_special_tokens=False)["input_ids"]) for option in options]
    shared = next(i for i in range(len(whole[0])) if len({tuple(ids[i : i + 1]) for ids in whole}) > 1)
    return [(ids[:shared], ids[shared:]) for ids in whole]


def _at_once(rows: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group rows of similar length into passes of so many tokens."""
    group = list[int]()
    for i in sorted(rows, key=lambda i: lengths[i]):
        if group and lengths[i] * (len(group) + 1) > TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
