"""Signs of learning gone wrong: each is told once, when it is seen, and a healthy run shows none."""

import pytest

from alignkit.learn.watch import Watch

HEALTHY = {
    "objective/kl": 3.0,
    "length": 20.0,
    "eos_rate": 0.9,
    "policy/entropy_avg": 1.5,
    "val/explained_var": 0.5,
    "val/length_corr": 0.2,
}


def told(*updates: dict[str, float]) -> list[str]:
    watch = Watch()
    return [sign.name for figures in updates for sign in watch.see(figures)]


def test_a_healthy_run_shows_no_sign() -> None:
    assert told(*[HEALTHY] * 30) == []


@pytest.mark.parametrize(
    ("sign", "then"),
    [
        ("kl", {"objective/kl": 80.0}),
        ("length", {"length": 40.0, "val/length_corr": 0.9}),
        ("eos", {"eos_rate": 0.1}),
        ("entropy", {"policy/entropy_avg": 0.1}),
        ("critic", {"val/explained_var": -0.3}),
        ("groups", {"val/groups_without_signal": 0.95}),
    ],
)
def test_what_goes_wrong_is_told_once(sign, then) -> None:
    always = {"val/groups_without_signal": 0.0} if sign == "groups" else {}

    assert told(*[HEALTHY | always] * 8, *[HEALTHY | then] * 10) == [sign]


def test_longer_answers_that_are_not_paid_for_are_no_sign() -> None:
    assert told(*[HEALTHY] * 8, *[HEALTHY | {"length": 60.0}] * 10) == []


def test_a_young_critic_has_time() -> None:
    assert told(*[HEALTHY | {"val/explained_var": -0.3}] * 9) == []


def test_a_sign_names_figures_and_a_remedy() -> None:
    watch = Watch()
    seen = [sign for figures in [HEALTHY] * 8 + [HEALTHY | {"eos_rate": 0.1}] * 8 for sign in watch.see(figures)]

    assert seen[0].problem == "only 30% of the answers still end by themselves, 90% did"
    assert seen[0].remedy == "raise generation.penalty or generation.max_new_tokens"
