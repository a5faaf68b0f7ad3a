"""Signs of learning gone wrong: each is told once, when it is seen, and a healthy run shows none."""

import pytest

from alignkit.training.warning_signs import AnswerBounds, WarningSigns

LIMITS = AnswerBounds(answers=64, longest=24, penalty=1.0, replaced=True)
HEALTHY = {
    "objective/scores": 0.2,
    "objective/scores_std": 0.5,
    "objective/kl": 3.0,
    "length": 20.0,
    "eos_rate": 0.9,
    "policy/entropy_avg": 1.5,
    "val/explained_var": 0.5,
    "val/length_corr": 0.2,
}


def told(*updates: dict[str, float]) -> list[str]:
    watch = WarningSigns()
    return [sign.name for figures in updates for sign in watch.see(figures, LIMITS)]


def test_a_healthy_run_shows_no_sign() -> None:
    assert told(*[HEALTHY] * 30) == []


@pytest.mark.parametrize(
    ("sign", "then"),
    [
        ("kl", {"objective/kl": 80.0}),
        ("length", {"length": 40.0, "val/length_corr": 0.9}),
        ("entropy", {"policy/entropy_avg": 0.1}),
        ("critic", {"val/explained_var": -0.3}),
        ("groups", {"val/groups_without_signal": 0.95}),
        ("engine", {"engine/clipped": 0.2}),
        ("spread", {"objective/spread": 0.4, "objective/scores": 0.3}),
        ("agreement", {"objective/agreement": 0.7, "objective/scores": 0.3}),
    ],
)
def test_what_goes_wrong_is_told_once(sign, then) -> None:
    at_first = {"objective/spread": 0.2, "objective/agreement": 0.95}
    always = {name: at_first.get(name, 0.0) for name in then if name not in HEALTHY}

    assert told(*[HEALTHY | always] * 8, *[HEALTHY | then] * 10) == [sign]


def test_longer_answers_that_are_not_paid_for_are_no_sign() -> None:
    assert told(*[HEALTHY] * 8, *[HEALTHY | {"length": 60.0}] * 10) == []


def test_a_young_critic_has_time() -> None:
    assert told(*[HEALTHY | {"val/explained_var": -0.3}] * 9) == []


def test_what_an_ensemble_says_is_told_with_its_figures() -> None:
    watch, start = WarningSigns(), HEALTHY | {"objective/spread": 0.2, "objective/agreement": 0.95}
    then = {"objective/spread": 0.4, "objective/agreement": 0.7, "objective/scores": 0.3}
    seen = [sign for figures in [start] * 4 + [start | then] * 4 for sign in watch.see(figures, LIMITS)]

    assert [sign.problem for sign in seen] == [
        "the members of the reward ensemble differ about an answer by 0.4, by 0.2 at the start, while scores rise: "
        "their pairs say little of such answers",
        "the members of the reward ensemble agree on 70% of what tells answers apart, on 95% at the start: the rest is "
        "chance",
    ]
    assert {sign.remedy for sign in seen} == {'stop earlier, raise kl.coef, or set reward.combine = "conservative"'}


def held_out(scores: float, held_out: float) -> dict[str, float]:
    aside = {"held_out/other": held_out, "held_out_std/other": 1.0}
    return HEALTHY | aside | {"objective/scores": scores}


def test_members_that_differ_more_while_scores_fall_are_no_sign() -> None:
    assert told(*[HEALTHY | {"objective/spread": 0.2}] * 8, *[HEALTHY | {"objective/spread": 0.4}] * 10) == []


@pytest.mark.parametrize(
    ("then", "sign"),
    [((0.3, 0.4), ["held out"]), ((0.3, 0.7), []), ((0.1, 0.4), [])],
    ids=["falls", "falls no more than by chance", "falls with what is learnt from"],
)
def test_a_held_out_reward_that_falls_while_scores_rise_is_told_once(then, sign) -> None:
    rising = [held_out(0.1, 0.1), held_out(0.2, 0.9)]

    assert told(*[one for one in rising for _ in range(8)], *[held_out(*then)] * 10) == sign


def test_what_held_out_rewards_gave_at_their_best_is_told() -> None:
    watch = WarningSigns()
    updates = [held_out(0.1, 0.1)] * 4 + [held_out(0.2, 0.9)] * 4 + [held_out(0.4, 0.0)] * 4
    seen = [sign for figures in updates for sign in watch.see(figures, LIMITS)]

    assert seen[0].problem == (
        "the held-out reward 'other' falls (0.9 at its best, 0.45 now) while what is learnt from rises (0.2 to 0.3), "
        "so that no longer tells which answers are good"
    )
    assert seen[0].remedy == "stop earlier, raise kl.coef, or learn the reward from more pairs"


def test_a_sign_names_figures_and_a_remedy() -> None:
    watch = WarningSigns()
    updates = [HEALTHY] * 8 + [HEALTHY | {"eos_rate": 0.1}] * 8
    seen = [sign for figures in updates for sign in watch.see(figures, LIMITS)]

    assert seen[1].problem == "only 30% of the answers still end by themselves, 90% did"
    assert seen[1].remedy == "raise generation.penalty or generation.max_new_tokens"


def test_answers_that_are_cut_are_told_from_the_first_update_on() -> None:
    (sign,) = WarningSigns().see(HEALTHY | {"eos_rate": 0.0625}, LIMITS)

    assert sign.problem == "60 of 64 answers were cut at 24 tokens and score -1 instead of by the reward"
    assert sign.remedy == (
        'set generation.unfinished = "subtract" and generation.penalty = 0, so that the reward counts, or raise '
        "generation.max_new_tokens"
    )


def test_the_remedy_knows_how_long_the_answers_were_that_the_policy_was_taught_by() -> None:
    (sign,) = WarningSigns().see(HEALTHY | {"eos_rate": 0.0}, LIMITS._replace(replaced=False, taught=112))

    assert sign.problem == "64 of 64 answers were cut at 24 tokens"
    assert sign.remedy == (
        "raise generation.max_new_tokens to 112, what the policy's demonstrations needed, or set generation.unfinished "
        '= "subtract" and generation.penalty = 0, so that the reward counts'
    )


def test_no_remedy_says_what_is_set_already() -> None:
    free = LIMITS._replace(replaced=False, penalty=0.0)

    assert free.remedy == "raise generation.max_new_tokens"
    assert free._replace(taught=112).remedy == (
        "raise generation.max_new_tokens to 112, what the policy's demonstrations needed"
    )


def test_updates_whose_answers_all_score_the_same_are_counted_from_the_start() -> None:
    flat, watch = HEALTHY | {"objective/scores_std": 0.0}, WarningSigns()

    counts = [(watch.see(figures, LIMITS), watch.flat)[1] for figures in (flat, flat, HEALTHY, flat)]

    assert counts == [1, 2, 2, 2]


def test_what_has_no_signal_is_told_with_its_reason() -> None:
    flat, cut = HEALTHY | {"objective/scores_std": 0.0}, WarningSigns()
    for _ in range(3):
        cut.see(flat | {"objective/scores": -1.0, "eos_rate": 0.0}, LIMITS)
    alike = WarningSigns()
    alike.see(flat, LIMITS)

    assert cut.without_signal(LIMITS).problem == (
        "all answers of each of 3 updates score the same (-1), so nothing is learnt: 64 of 64 answers were cut at 24 "
        "tokens and score -1 instead of by the reward"
    )
    assert alike.without_signal(LIMITS)[1:] == (
        "all answers of the update score the same (0.2), so nothing is learnt",
        "use a reward that tells answers apart, or set patience = 0 to go on all the same",
    )
