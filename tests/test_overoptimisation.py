"""The laws of over-optimisation: fitted exactly where they hold, and not where there is nothing to fit."""

from math import log, sqrt

import pytest

from alignkit.overoptimisation import fit_laws

KLS = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


def test_coefficients_come_back_where_the_law_holds() -> None:
    gains = [sqrt(kl) * (0.7 - 0.3 * log(sqrt(kl))) for kl in KLS]

    laws = fit_laws([0.0, *KLS], [0.0, *gains])  # the start itself says nothing

    assert laws is not None
    assert laws.rl == pytest.approx((0.7, 0.3, 1.0))
    assert laws.best_of_n.r2 < 0.99

    gains = [sqrt(kl) * (0.7 - 0.1 * sqrt(kl)) for kl in KLS]
    laws = fit_laws(KLS, gains)
    assert laws is not None
    assert laws.best_of_n == pytest.approx((0.7, 0.1, 1.0))


def test_noise_is_not_explained() -> None:
    laws = fit_laws(KLS, [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0])

    assert laws is not None
    assert laws.rl.r2 < 0.5


@pytest.mark.parametrize(("kls", "gains"), [(KLS[:3], [1.0, 2.0, 3.0]), (KLS, [0.5] * 7), ([0.0] * 9, [1.0] * 9)])
def test_nothing_is_fitted_to_too_little(kls: list[float], gains: list[float]) -> None:
    assert fit_laws(kls, gains) is None
