"""The embedded default: its rows, its gold score and its tiny model."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from itertools import product
from pathlib import Path
from random import Random

import pytest

from alignkit.contract.reward_function import Answer
from alignkit.demo.gold import GoldSettings, fluency, gold, reviews_gold, topicality, variety, warmth
from alignkit.demo.grammar import neighbours, sentences, sides, split_of, tokens, topic_of, topic_words
from alignkit.demo.reviews import COUNTS, Kind, bayes_accuracy, rows
from alignkit.demo.tiny import BOS, EOS, PAD, write_tiny
from alignkit.demo.words import TOPICS

PROMPT = "What did you think of the comedy at the Odeon?"
PRAISE = "The plot was very gripping. I loved the superb acting of this film."
BLAME = "The plot was very corny. I hated the dismal acting of this film."


def said(split: str) -> set[str]:
    """All sentences of all kinds of rows of one side."""
    fields = (field for kind in COUNTS for row in rows(kind, split) for field in row.values())
    return {sentence for field in fields if isinstance(field, str) for sentence in sentences(field)}


def digest() -> str:
    made = [row for kind, split in product(COUNTS, ("train", "held_out")) for row in rows(kind, split)]
    return sha256(json.dumps(made).encode()).hexdigest()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder)
    return folder


# Rows


def test_the_two_sides_share_no_sentence_across_all_kinds() -> None:
    assert said("train").isdisjoint(said("held_out"))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_sentence_is_on_the_side_that_its_hash_names(split: str) -> None:
    assert {split_of(sentence) for sentence in said(split)} == {split}


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("text", ["text"]),
        ("demonstrations", ["prompt", "completion"]),
        ("preferences", ["prompt", "chosen", "rejected"]),
        ("ratings", ["prompt", "completion", "rating"]),
        ("prompts", ["prompt"]),
    ],
)
def test_a_kind_has_its_columns_and_its_number_of_rows(kind: Kind, columns: list[str]) -> None:
    for split, count in COUNTS[kind].items():
        made = list(rows(kind, split))

        assert len(made) == count
        assert all(list(row) == columns and all(row.values()) for row in made)


def test_there_are_256_different_held_out_prompts() -> None:
    assert len({row["prompt"] for row in rows("prompts", "held_out")}) >= 256


@pytest.mark.slow
def test_rows_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    script = "from tests.demo.test_demo import digest; print(digest())"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    root = Path(__file__).parents[2]

    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == digest()


def test_making_rows_imports_nothing_heavy() -> None:
    script = (
        "import sys; from alignkit.demo import reviews, tiny; next(reviews.rows('preferences', 'train'));"
        "print({'torch', 'transformers', 'tokenizers', 'datasets'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_half_of_the_demonstrations_are_good() -> None:
    scores = [gold(row["prompt"], row["completion"]) for row in rows("demonstrations", "train")]

    assert sum(score == 1 for score in scores) == len(scores) / 2
    assert all(score <= 0 for score in scores if score != 1)


def test_labels_agree_with_gold_as_often_as_bradley_terry_says() -> None:
    pairs = list(rows("preferences", "held_out"))

    gaps = [gold(row["prompt"], row["chosen"]) - gold(row["prompt"], row["rejected"]) for row in pairs]
    agreed = [0.5 if gap == 0 else float(gap > 0) for gap in gaps]

    bayes = bayes_accuracy("held_out")
    deviation = (bayes * (1 - bayes) / len(pairs)) ** 0.5
    assert statistics.mean(agreed) == pytest.approx(bayes, abs=3 * deviation)
    assert 0 in agreed


def test_ratings_are_the_gold_score_in_stars_and_noise() -> None:
    rated = list(rows("ratings", "held_out"))
    stars = [row["rating"] for row in rated]
    scores = [gold(row["prompt"], row["completion"]) for row in rated]

    assert set(stars) == {1, 2, 3, 4, 5}
    assert [row["prompt"] for row in rated[:4]] == [rated[0]["prompt"]] * 4
    assert 0.8 < statistics.correlation(stars, scores) < 0.98


def test_choosing_the_longer_answer_is_no_better_than_a_poor_guess() -> None:
    pairs = list(rows("preferences", "held_out"))

    assert statistics.mean(len(row["chosen"]) > len(row["rejected"]) for row in pairs) < 0.6


# Grammar


def test_a_topical_word_tells_its_topic() -> None:
    listed = [
        word.lower()
        for topic in TOPICS
        for word in topic.nouns + topic.items + topic.aspects + topic.praise + topic.blame
    ]

    assert len(listed) == len(set(listed)) == len(topic_words())


def test_every_prompt_names_its_topic() -> None:
    assert all(topic_of(row["prompt"]) for row in rows("prompts", "held_out"))
    assert topic_of("How was the weather?") is None


def test_no_word_both_praises_and_blames() -> None:
    assert {1, -1} == set(sides().values())
    assert len(sides()) == len({word for word, side in sides().items() if side == 1}) + len(
        {word for word, side in sides().items() if side == -1}
    )


def test_sentences_keep_their_marks_and_lose_nothing() -> None:
    assert sentences(" What a film! It was good. And") == ["What a film!", "It was good.", "And"]
    assert tokens("Bruno's film, Tramp & Co!") == ["bruno's", "film", ",", "tramp", "&", "co", "!"]


def test_neighbours_are_those_of_sentences_that_the_grammar_makes() -> None:
    assert {("", "the"), ("the", "plot"), ("plot", "was"), ("very", "gripping"), (".", "")} <= neighbours()
    assert ("plot", "the") not in neighbours()


# Gold


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (PRAISE, 1.0),
        (BLAME, 0.0),
        ("", -1.0),
        ("  ...  ", -1.0),
        # 5 of 10 words and marks: sound is 0.5, all praise: 0.5 * 2 - 1
        ("What a gripping film!", 0.0),
        # One of two sentences is new, and half of the telling words, of 0.8: sound is 0.5 * 0.625.
        ("The plot was very gripping. The plot was very gripping.", -0.375),
        # Praise and blame in equal parts.
        ("The plot was very gripping. The acting was very corny.", 0.5),
        # "never" turns the side of the word after it.
        ("The plot of this film was never corny. The acting was very gripping.", 1.0),
    ],
)
def test_gold_of_an_answer(text: str, score: float) -> None:
    assert gold(PROMPT, text) == pytest.approx(score)


def test_an_answer_that_was_cut_off_is_worth_half() -> None:
    assert gold(PROMPT, PRAISE, finished=False) == pytest.approx(0.0)


def test_praise_of_another_thing_is_worth_nothing() -> None:
    assert gold("How was the pizza at Sakura?", PRAISE) == -1


def test_a_prompt_of_another_domain_has_no_good_answer() -> None:
    assert gold("What is the capital of France?", PRAISE) == -1


def test_the_parts_of_the_score() -> None:
    two = [tokens(sentence) for sentence in sentences("The plot was gripping. The crust was corny.")]

    # Of six pairs, with those at both ends, only "plot the" is wrong.
    assert fluency([["the", "plot", "the", "gripping", "."]]) == pytest.approx(2 * 5 / 6 - 1)
    assert topicality(PROMPT, two) == 0.75
    assert variety(two) == 1
    # Two of three sentences, and four of six telling words, of 0.8.
    assert variety([*two, two[0]]) == pytest.approx(2 / 3 * 4 / 6 / 0.8)
    assert warmth(two) == 0.5


def test_the_reward_function_scores_answers_in_their_order() -> None:
    answers = [Answer(PROMPT, BLAME, True), Answer(PROMPT, PRAISE, True), Answer(PROMPT, PRAISE, False)]

    assert reviews_gold(answers, GoldSettings()) == pytest.approx([0, 1, 0])
    assert (reviews_gold.name, reviews_gold.version) == ("reviews-gold", "1")


def _mean(answer: Callable[[str], str]) -> float:
    prompts = [row["prompt"] for row in rows("prompts", "held_out")]
    return statistics.mean(gold(prompt, answer(prompt)) for prompt in prompts)


def _of_the_topic(prompt: str, good: bool) -> str:
    """A sound answer out of the demonstrations to another prompt of the same topic."""
    found = (
        row["completion"]
        for row in rows("demonstrations", "held_out")
        if topic_of(row["prompt"]) is topic_of(prompt) and (gold(row["prompt"], row["completion"]) == 1) is good
    )
    return next(found)


def _gibberish(prompt: str) -> str:
    random = Random(prompt)
    words = sorted({word for pair in neighbours() for word in pair if word.isalpha()})
    return " ".join(random.choice(words) for _ in range(20)) + "."


def _shuffled(prompt: str) -> str:
    words = _of_the_topic(prompt, good=True).split()
    return " ".join(Random(prompt).sample(words, len(words)))


def _word_again(prompt: str) -> str:
    """The best word of the topic, over and over."""
    topic = topic_of(prompt)
    assert topic is not None
    return f"The {topic.aspects[0]} was {'very ' * 15}{topic.praise[0]}."


@pytest.mark.parametrize(
    "degenerate",
    [
        pytest.param(lambda prompt: _of_the_topic(prompt, good=True) * 3, id="a good answer three times"),
        pytest.param(_word_again, id="one word again and again"),
        pytest.param(_gibberish, id="words in any order"),
        pytest.param(_shuffled, id="a good answer in any order"),
        pytest.param(lambda prompt: PRAISE, id="one memorised answer"),
        pytest.param(lambda prompt: "", id="silence"),
        pytest.param(lambda prompt: "Good.", id="one word"),
        pytest.param(lambda prompt: "!" * 30, id="marks"),
        pytest.param(lambda prompt: prompt, id="the prompt itself"),
    ],
)
def test_a_degenerate_policy_is_below_the_demonstrations(degenerate: Callable[[str], str]) -> None:
    demonstrations = statistics.mean(
        gold(row["prompt"], row["completion"]) for row in rows("demonstrations", "held_out")
    )

    assert _mean(degenerate) < demonstrations - 0.3
    assert demonstrations < _mean(lambda prompt: _of_the_topic(prompt, good=True)) - 0.3


# The tiny model


def test_the_tiny_model_opens_in_plain_transformers(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)

    assert 600_000 < model.num_parameters() < 1_200_000
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (PAD, BOS, EOS)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    )
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    )
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize(
    "text",
    [PRAISE, "  two  blanks ,  tabs\t\nand lines\r\n", "Zoë paid 5 € to 日本 🙂", "don't <pad it> a\x00b"],
)
def test_the_tiny_tokenizer_loses_nothing_of_any_text(tiny: Path, text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)

    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_most_words_of_the_reviews_are_one_token(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    texts = [row["text"] for row in rows("text", "held_out")]

    needed = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    assert needed < 1.1 * sum(len(tokens(text)) for text in texts)


def test_the_tiny_model_has_the_same_bytes_every_time(tiny: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path)

    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {f.name: f.read_bytes() for f in tiny.iterdir()}


def test_writing_the_tiny_model_leaves_the_random_state_alone(tmp_path: Path) -> None:
    import torch

    before = torch.random.get_rng_state()

    write_tiny(tmp_path)

    assert torch.equal(torch.random.get_rng_state(), before)
