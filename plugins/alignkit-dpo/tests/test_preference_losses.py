"""Losses of preferences: TRL's own code on the same numbers, and laws."""

import math
import os
from collections import defaultdict
from types import SimpleNamespace

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pytest
import torch
from alignkit_dpo import preference_losses as losses
from alignkit_dpo.dpo import OF_MARGIN, DPOSettings, judged
from alignkit_dpo.pair_learning import PairMethod, Side, Sides

ROWS, TOKENS = 6, 5
LENGTHS = torch.tensor([[5, 3], [2, 4], [1, 5], [5, 5], [4, 2], [3, 1]])  # (n, 2)


def tables(seed: int) -> list[torch.Tensor]:
    """Return log-probabilities of the tokens of both answers (n, t), zero behind their end."""
    drawn = -2 * torch.rand(2, ROWS, TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [one * (torch.arange(TOKENS) < LENGTHS[:, side, None]) for side, one in enumerate(drawn)]


POLICY, START = tables(1), tables(2)


def sides(tail: float = 1.0, policy=POLICY, start=START) -> Sides:
    method = PairMethod(DPOSettings(), lambda _: None, tail=tail)
    lengths = [*LENGTHS.double().unbind(dim=1)]
    now, began = (method.weighed(one, lengths) for one in (policy, start))
    both = [
        Side(a.sum(dim=1) - b.sum(dim=1), plain.sum(dim=1), length)
        for a, b, plain, length in zip(now, began, policy, lengths, strict=True)
    ]
    return Sides(*both, None, torch.zeros(ROWS, dtype=torch.float64))


def of_trl(**given) -> float:
    """Return what TRL's DPOTrainer makes of the same log-probabilities: the mean loss."""
    from trl import DPOTrainer

    mask = torch.cat([torch.arange(TOKENS) < LENGTHS[:, side, None] for side in (0, 1)])
    full = torch.cat([torch.zeros(2 * ROWS, 1), mask], dim=1).long()
    one = torch.zeros(2 * ROWS, TOKENS)
    said = SimpleNamespace(
        log_probs=torch.cat(POLICY).float(), entropy=one, mean_logits=one, log_sum_sq_probs=one, is_top1=one.bool()
    )
    method = PairMethod(DPOSettings(), lambda _: None, tail=given.get("ld_alpha", 1.0))
    lengths = [*LENGTHS.double().unbind(dim=1)]
    start = [table.sum(dim=1).float() for table in method.weighed(START, lengths)]

    class Model:
        training = True

        def __call__(self, **_):
            return said

    trainer = SimpleNamespace(
        **{
            "model": Model(),
            "accelerator": SimpleNamespace(device="cpu", gather_for_metrics=torch.clone, gather=torch.clone),
            "aux_loss_enabled": False,
            "precompute_ref_logps": True,
            "ld_alpha": None,
            "f_divergence_type": "reverse_kl",
            "f_alpha_divergence_coef": 0.5,
            "loss_types": ["sigmoid"],
            "loss_weights": [1.0],
            "label_smoothing": 0.0,
            "use_weighting": False,
            "beta": 0.3,
            "args": SimpleNamespace(discopop_tau=0.05),
            "_metrics": {"train": defaultdict(list)},
            "_total_train_tokens": 0,
            "_tp_size": 1,
        }
        | given
    )
    inputs = {
        "input_ids": full,
        "attention_mask": full,
        "completion_mask": full,
        "ref_chosen_logps": start[0],
        "ref_rejected_logps": start[1],
    }
    return float(DPOTrainer._compute_loss(trainer, trainer.model, inputs, False))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"loss": "sigmoid"}, {"loss_types": ["sigmoid"]}),
        ({"loss": "hinge"}, {"loss_types": ["hinge"]}),
        ({"loss": "ipo"}, {"loss_types": ["ipo"]}),
        ({"loss": "robust", "label_smoothing": 0.2}, {"loss_types": ["robust"], "label_smoothing": 0.2}),
        ({"loss": "exo", "label_smoothing": 0.01}, {"loss_types": ["exo_pair"], "label_smoothing": 0.01}),
        ({"loss": "discopop"}, {"loss_types": ["discopop"]}),
        ({"loss": "nca"}, {"loss_types": ["nca_pair"]}),
        ({"loss": "bco"}, {"loss_types": ["bco_pair"]}),
        ({"loss": "sppo"}, {"loss_types": ["sppo_hard"]}),
        ({"loss": "apo-zero"}, {"loss_types": ["apo_zero"]}),
        ({"loss": "apo-down"}, {"loss_types": ["apo_down"]}),
        ({"by_token": True}, {"loss_types": ["sigmoid_norm"]}),
        ({"tail": 0.4}, {"ld_alpha": 0.4}),
        ({"divergence": "forward-kl"}, {"f_divergence_type": "forward_kl"}),
        ({"divergence": "js", "loss": "hinge"}, {"f_divergence_type": "js_divergence", "loss_types": ["hinge"]}),
        (
            {"divergence": "alpha", "alpha": 0.3},
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        ),
        ({"weighted": True}, {"use_weighting": True}),
        (
            {"loss": {"sigmoid": 0.8, "bco": 0.2}},
            {"loss_types": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2]},
        ),
    ],
    ids=lambda given: " ".join(map(str, given.values())),
)
def test_a_loss_is_trls(ours, theirs) -> None:
    found = judged(sides(ours.get("tail", 1.0)), DPOSettings(beta=0.3, **ours))

    assert float(found.loss.mean()) == pytest.approx(of_trl(**theirs), rel=1e-6)


def test_aot_is_trls() -> None:
    from alignkit_dpo.dpo import SHIFT, with_shifts
    from alignkit_dpo.pair_learning import START as SAID

    from alignkit.kit import Pair

    began, now = ([*zip(*(table.sum(dim=1).tolist() for table in both), strict=True)] for both in (START, POLICY))
    moved = with_shifts([Pair(None, None, 1.0, {SAID: said}) for said in began], now)
    shift = torch.tensor([pair.row[SHIFT] for pair in moved], dtype=torch.float64)

    given = DPOSettings(loss="aot", beta=0.3, label_smoothing=0.1)
    found = judged(sides()._replace(shift=shift), given)

    assert float(found.loss.mean()) == pytest.approx(of_trl(loss_types=["aot"], label_smoothing=0.1), rel=1e-6)


def test_the_likelihood_of_chosen_answers_is_a_mean_over_their_tokens() -> None:
    found = judged(sides(), DPOSettings(loss="sft")).loss

    expected = [-float(row[:length].mean()) for row, length in zip(POLICY[0], LENGTHS[:, 0].tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loss", "alpha"), [("sigmoid", 0.0), ("simpo", 0.0), ("simpo", 0.25), ("hinge", 0.0), ("ipo", 0.0)]
)
def test_cpo_and_simpo_are_trls(loss, alpha) -> None:
    from trl.experimental.cpo import CPOTrainer

    both = sides()
    means = [side.logprobs / (side.lengths if loss in ("simpo", "ipo") else 1) for side in both[:2]]
    facts = {"loss_type": loss, "alpha": alpha, "beta": 0.3, "simpo_gamma": 0.2, "label_smoothing": 0.1}
    trainer = SimpleNamespace(**facts, accelerator=SimpleNamespace(device="cpu"))
    theirs, *_ = CPOTrainer.cpo_loss(trainer, *means)

    if loss == "simpo":
        rewards = [0.3 * losses.transformed(mean, alpha) for mean in means]
        ours = losses.sigmoid(rewards[0] - rewards[1] - 0.2, 0.1)
    elif loss == "ipo":
        ours = losses.ipo(means[0] - means[1], 0.3)
    else:
        margin = 0.3 * (means[0] - means[1])
        ours = losses.hinge(margin) if loss == "hinge" else losses.sigmoid(margin, 0.1)
    assert ours.tolist() == pytest.approx(theirs.tolist())


def test_the_odds_ratio_is_trls() -> None:
    from trl.experimental.orpo import ORPOTrainer

    means = [side.logprobs / side.lengths for side in sides()[:2]]
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    theirs, *_ = ORPOTrainer.odds_ratio_loss(trainer, *means)

    assert (-0.3 * losses.odds_ratio(*means)).tolist() == pytest.approx(theirs.tolist(), rel=1e-5)


def test_the_odds_are_those_of_a_likelihood() -> None:
    found = losses.log_odds(torch.tensor([math.log(0.8)]))

    assert float(found) == pytest.approx(math.log(0.8 / 0.2))


# What a loss is where nothing was gained yet, at beta 0.3
AT_THE_START = {
    "sigmoid": math.log(2),
    "ipo": (1 / 0.6) ** 2,
    "hinge": 1.0,
    "robust": math.log(2),
    "exo": math.log(0.5) - math.log(0.9) / 2 - math.log(0.1) / 2,
    "discopop": (math.log(2) + 1) / 2,
    "squared-hinge": 1.0,
    "exponential": 1.0,
    "aot": math.log(2),
    "nca": 2 * math.log(2),
    "bco": 2 * math.log(2),
    "sppo": 2 * (1 / 0.6) ** 2,
    "apo-zero": 1.0,
    "apo-down": 1.0,
}


def gains(chosen: float, rejected: float) -> tuple[Sides, torch.Tensor]:
    given = torch.tensor([[chosen], [rejected]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    return Sides(Side(given[0], given[0] - 5, one), Side(given[1], given[1] - 5, one), None, 0 * one), given


def of(loss: str, **given) -> DPOSettings:
    return DPOSettings(loss=loss, beta=0.3, **({"label_smoothing": 0.1} if loss == "exo" else {}), **given)


@pytest.mark.parametrize("loss", AT_THE_START)
def test_a_loss_is_known_at_the_start_and_pulls_the_right_way(loss) -> None:
    both, given = gains(0.0, 0.0)
    found = judged(both, of(loss)).loss
    found.sum().backward()

    assert found.item() == pytest.approx(AT_THE_START[loss])
    chosen, rejected = given.grad.flatten().tolist()
    if loss == "discopop":  # its slope at zero is the wrong one by design: section 4.3 of its paper
        assert chosen > 0 > rejected
    else:
        assert rejected > 0 >= chosen  # a step against the gradient lowers the one and does not lower the other


def test_nca_lets_the_chosen_answer_rise_and_apo_down_lowers_it_less() -> None:
    found = {}
    for loss in ("nca", "apo-down"):
        both, given = gains(0.0, 0.0)
        judged(both, of(loss)).loss.sum().backward()
        found[loss] = given.grad.flatten().tolist()

    # s' = 1/4 at zero: -1/2 + 1/4 and 1/4 of beta; 1/4 - 1/4 and 1/4 of beta
    assert found == {"nca": pytest.approx([-0.3 / 4, 0.3 / 4]), "apo-down": pytest.approx([0.0, 0.3 / 4])}


@pytest.mark.parametrize("loss", [name for name in AT_THE_START if name in OF_MARGIN])
def test_a_loss_of_a_margin_does_not_see_what_both_answers_gain(loss) -> None:
    one, both = (judged(gains(*given)[0], of(loss)).loss for given in ((1.5, 0.5), (3.5, 2.5)))

    assert one.item() == pytest.approx(both.item())


def test_a_mixture_is_linear_in_its_weights() -> None:
    both = sides()
    alone = {name: judged(both, DPOSettings(loss=name)).loss for name in ("sigmoid", "sft", "apo-zero")}

    mixed = judged(both, DPOSettings(loss={"sigmoid": 0.8, "sft": 0.3, "apo-zero": 2.0})).loss

    torch.testing.assert_close(mixed, 0.8 * alone["sigmoid"] + 0.3 * alone["sft"] + 2.0 * alone["apo-zero"])


def test_a_length_penalty_moves_the_margin_by_the_tokens_that_the_chosen_answer_has_more() -> None:
    both = sides()
    margin = 0.3 * (both.chosen.gains - both.rejected.gains) + 0.05 * (LENGTHS[:, 0] - LENGTHS[:, 1])

    found = judged(both, DPOSettings(beta=0.3, length_penalty=0.05)).loss

    torch.testing.assert_close(found, (1 + (-margin).exp()).log())


def test_a_chosen_answer_that_lost_likelihood_takes_from_the_margin() -> None:
    lost, kept = (
        judged(gains(*given)[0], DPOSettings(beta=0.3, keep_chosen=2.0)).loss for given in ((-1.0, -2.0), (1.0, 0.0))
    )

    assert lost.item() == pytest.approx(math.log1p(math.exp(-0.3 * (1 - 2.0))))
    assert kept.item() == pytest.approx(math.log1p(math.exp(-0.3)))


def test_the_alpha_divergence_lies_between_the_reverse_and_the_forward_kl() -> None:
    given = torch.tensor([-1.0, 0.0, 0.7], dtype=torch.float64)

    torch.testing.assert_close(losses.divergent(given, "alpha", 1e-9), given, atol=1e-6, rtol=0)
    torch.testing.assert_close(losses.divergent(given, "alpha", 1.0), losses.divergent(given, "forward-kl"))


def test_alphapo_comes_to_simpo_as_alpha_goes_to_zero() -> None:
    given = torch.tensor([-1.0, -0.2], dtype=torch.float64)

    torch.testing.assert_close(losses.transformed(given, 1e-9), losses.transformed(given, 0.0), atol=1e-6, rtol=0)


def test_discopop_stays_finite_where_a_product_would_overflow() -> None:
    assert bool(losses.discopop(torch.tensor([-200.0, 200.0]), 0.05).isfinite().all())
