"""Methods: the signature is the whole declaration, and anything that it cannot say is refused."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import PositiveInt

from alignkit import (
    Demonstrations,
    Judge,
    Policy,
    Preferences,
    Prompts,
    Ratings,
    Reward,
    RewardModel,
    Scores,
    Settings,
    Stage,
    method,
    reward,
)
from alignkit.contract.kinds import Artifact, kinds_by_name
from alignkit.contract.method import STAGE_KEYS, Input
from alignkit.contract.reward_function import Answer
from alignkit.errors import PluginError

if TYPE_CHECKING:
    from decimal import Decimal as Unseen


class Odd(Settings):
    n: PositiveInt = 1
    """How many."""


@method("whole")
def whole(
    settings: Odd,
    stage: Stage,
    *,
    policy: Policy,
    answers: Ratings | Preferences,
    against: Policy | None = None,
    rewards: tuple[Reward, ...],
    judges: tuple[Judge | Reward, ...] = (),
) -> Scores:
    """Do it all,
    in one line.

    And more.
    """
    raise NotImplementedError


def test_the_signature_is_the_declaration() -> None:
    assert whole.consumes == {
        "policy": Input("policy", (Policy,)),
        "answers": Input("answers", (Ratings, Preferences)),
        "against": Input("against", (Policy,), optional=True),
        "rewards": Input("rewards", (Reward,), several=True),
        "judges": Input("judges", (Judge, Reward), several=True, optional=True),
    }
    assert (whole.settings, whole.produces) == (Odd, Scores)


def test_the_first_paragraph_of_the_docstring_is_the_summary() -> None:
    assert whole.summary == "Do it all, in one line."


def test_a_method_stays_callable() -> None:
    @method("echo")
    def echo(settings: Odd, stage: Stage, *, policy: Policy) -> Policy:
        return policy

    policy: Any = object()
    stage: Any = None
    assert echo(Odd(), stage, policy=policy) is policy


def test_a_subclass_of_a_kind_will_do() -> None:
    assert whole.consumes["rewards"].takes(RewardModel)
    assert not whole.consumes["policy"].takes(Judge)


def test_a_package_may_define_a_kind_but_not_replace_one_of_ours() -> None:
    class Voice(Artifact):
        pass

    class Policy(Artifact):
        pass

    assert (kinds_by_name()["Voice"], kinds_by_name()["Policy"].__module__) == (Voice, "alignkit.contract.kinds")


NOTHING: Any = None
EMPTY: Any = ()


def no_stage(settings: Odd) -> Policy: ...  # type: ignore[empty-body]  # never called, as all below
def keyword_head(*, settings: Odd, stage: Stage) -> Policy: ...  # type: ignore[empty-body]
def no_settings(settings: int, stage: Stage) -> Policy: ...  # type: ignore[empty-body]
def bare_settings(settings, stage: Stage) -> Policy: ...  # type: ignore[no-untyped-def, empty-body]
def odd_stage(settings: Odd, stage: int) -> Policy: ...  # type: ignore[empty-body]
def positional(settings: Odd, stage: Stage, policy: Policy) -> Policy: ...  # type: ignore[empty-body]
def catch_all(settings: Odd, stage: Stage, **inputs: Policy) -> Policy: ...  # type: ignore[empty-body]
def no_kind(settings: Odd, stage: Stage, *, policy: int) -> Policy: ...  # type: ignore[empty-body]
def bare(settings: Odd, stage: Stage, *, policy) -> Policy: ...  # type: ignore[no-untyped-def, empty-body]
def a_list(settings: Odd, stage: Stage, *, policy: list[Policy]) -> Policy: ...  # type: ignore[empty-body]
def mixed(settings: Odd, stage: Stage, *, policy: Policy | int) -> Policy: ...  # type: ignore[empty-body]
def no_default(settings: Odd, stage: Stage, *, policy: Policy | None) -> Policy: ...  # type: ignore[empty-body]
def none_default(settings: Odd, stage: Stage, *, policy: Policy = NOTHING) -> Policy: ...  # type: ignore[empty-body]
def odd_default(settings: Odd, stage: Stage, *, policy: Policy = EMPTY) -> Policy: ...  # type: ignore[empty-body]
def odd_tuple(settings: Odd, stage: Stage, *, policy: tuple[Policy, ...] = NOTHING) -> Policy: ...  # type: ignore[empty-body]
def pair(settings: Odd, stage: Stage, *, policy: tuple[Policy, Policy]) -> Policy: ...  # type: ignore[empty-body]
def maybe_tuple(settings: Odd, stage: Stage, *, policy: tuple[Policy | None, ...]) -> Policy: ...  # type: ignore[empty-body]
def odd_costs(settings: Odd, stage: Stage, *, costs: tuple[Policy, ...] = ()) -> Policy: ...  # type: ignore[empty-body]
def no_return(settings: Odd, stage: Stage): ...  # type: ignore[no-untyped-def]
def two_returns(settings: Odd, stage: Stage) -> Policy | Scores: ...  # type: ignore[empty-body]
def unseen(settings: Odd, stage: Stage, *, policy: "Unseen") -> Policy: ...  # type: ignore[empty-body]


KINDS = "its input 'policy' must be a kind, a union, optional, or a tuple of kinds"


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (no_stage, "its first two parameters must be the settings and the stage"),
        (keyword_head, "its first two parameters must be the settings and the stage"),
        (no_settings, "its first parameter must be annotated with a Settings class"),
        (bare_settings, "its first parameter must be annotated with a Settings class"),
        (odd_stage, "its second parameter must be annotated with Stage"),
        (positional, "its input 'policy' must be keyword-only (after a *)"),
        (catch_all, "its input 'inputs' must be keyword-only (after a *)"),
        (no_kind, KINDS),
        (bare, KINDS),
        (a_list, KINDS),
        (mixed, KINDS),
        (pair, KINDS),
        (maybe_tuple, KINDS),
        (no_default, "its input 'policy' must be `Kind | None = None` to be optional"),
        (none_default, "its input 'policy' must be `Kind | None = None` to be optional"),
        (odd_default, "its input 'policy' can only default to None"),
        (odd_tuple, "its input 'policy' can only default to ()"),
        (odd_costs, "its input 'costs', what a recipe bounds, must be `tuple[Reward, ...] = ()`"),
        (no_return, "it must return one kind, such as -> Policy"),
        (two_returns, "it must return one kind, such as -> Policy"),
        (
            unseen,
            "name 'Unseen' is not defined; an annotation imported only under TYPE_CHECKING cannot be read, "
            "import it normally",
        ),
    ],
)
def test_what_a_signature_cannot_say_is_refused(function: Callable[..., Any], why: str) -> None:
    with pytest.raises(PluginError) as raised:
        method("odd")(function)

    name = f"{__name__}.{function.__name__}"
    assert str(raised.value) == f"{name}: method 'odd' cannot be read: {why}; `alignkit new NAME` writes one that can"


@pytest.mark.parametrize("name", ["", "Dpo", "1st", "a b", "a" * 42])
def test_a_name_that_no_recipe_could_use_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match="its name must match"):
        method(name)(no_return)


@pytest.mark.parametrize("name", [key for key in STAGE_KEYS if "_" not in key])
def test_a_name_that_a_stage_uses_itself_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match="a stage has a key of that name"):
        method(name)(no_return)


@pytest.mark.parametrize("unfit", [no_return, no_stage, lambda answers: [1.0], lambda answers, settings: [1.0]])
def test_a_reward_of_another_form_is_refused(unfit: Callable[..., Any]) -> None:
    with pytest.raises(PluginError) as raised:
        reward("odd")(unfit)

    assert raised.value.problem == "reward 'odd' is not of the form f(answers, settings: SomeSettings) -> list[float]"


# Methods that other papers and packages have: the contract must be able to say them.


class OrpoSettings(Settings):
    beta: float = 0.1


@method("orpo")
def orpo(settings: OrpoSettings, stage: Stage, *, policy: Policy, pairs: Preferences) -> Policy:
    raise NotImplementedError


@method("kto")
def kto(settings: OrpoSettings, stage: Stage, *, policy: Policy, answers: Ratings | Preferences) -> Policy:
    raise NotImplementedError


@method("best-of-n")
def best_of_n(
    settings: Odd, stage: Stage, *, policy: Policy, prompts: Prompts, rewards: tuple[Reward, ...]
) -> Demonstrations:
    raise NotImplementedError


@method("rlaif")
def rlaif(settings: Odd, stage: Stage, *, policy: Policy, prompts: Prompts, judge: Judge) -> Preferences:
    raise NotImplementedError


class Digits(Settings):
    tolerance: float = 0.0


@reward("arithmetic", version="2")
def arithmetic(answers: Sequence[Answer], settings: Digits) -> list[float]:
    """Score 1 for the number in the row."""
    return [float(answer.text.strip() == str(answer.row["answer"])) for answer in answers]


def test_foreign_methods_can_be_said() -> None:
    said = {
        m.name: ([i.words for i in m.consumes.values()], m.produces.__name__) for m in (orpo, kto, best_of_n, rlaif)
    }

    assert said == {
        "orpo": (["Policy", "Preferences"], "Policy"),
        "kto": (["Policy", "Ratings or Preferences"], "Policy"),
        "best-of-n": (["Policy", "Prompts", "Reward"], "Demonstrations"),
        "rlaif": (["Policy", "Prompts", "Judge"], "Preferences"),
    }


def test_a_verifiable_reward_sees_the_columns_that_its_source_keeps() -> None:
    answers = [Answer("2+2?", " 4 ", True, {"prompt": "2+2?", "answer": 4}), Answer("1+1?", "3", True, {"answer": 2})]

    assert arithmetic(answers, Digits()) == [1.0, 0.0]
    assert (arithmetic.name, arithmetic.version, arithmetic.settings) == ("arithmetic", "2", Digits)


def test_figures_are_named_after_the_inputs_that_a_recipe_gives() -> None:
    @method("rate", results=("loss", "reward {policies}", "{policies} over {policies}", "cost/{anything}"))
    def rate(settings: Settings, stage: Stage, *, policies: tuple[Policy, ...]) -> Scores:
        """Rate policies."""
        raise NotImplementedError

    inputs = {"policies": ("base", "align")}

    assert rate.result_names(inputs) == (
        "loss", "reward base", "reward align", "base over align", "align over base", "cost/{anything}",
    )  # fmt: skip
    assert all(rate.tells(result, inputs) for result in ("loss", "reward base", "base over align", "cost/tokens"))
    assert not any(rate.tells(result, inputs) for result in ("losses", "reward other", "base over base", "cost/"))


def test_a_method_that_declares_no_figures_may_tell_any() -> None:
    @method("rate")
    def rate(settings: Settings, stage: Stage, *, policy: Policy) -> Scores:
        """Rate a policy."""
        raise NotImplementedError

    assert rate.tells("anything", {})


@pytest.mark.parametrize("results", ["loss", ("",)])
def test_figures_that_are_no_names_are_refused(results: Any) -> None:
    with pytest.raises(PluginError, match="its results must be names, such as"):

        @method("rate", results=results)
        def rate(settings: Settings, stage: Stage, *, policy: Policy) -> Scores:
            """Rate a policy."""
            raise NotImplementedError
