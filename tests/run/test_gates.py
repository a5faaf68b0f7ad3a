"""Gates know how sure the figures are that they hold."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from alignkit.contract.events import Result
from alignkit.plan.plan import PlannedStage
from alignkit.run.gates import GateError, check_gates, doubts
from alignkit.store.results import Finished


def gated(**bounds: float) -> PlannedStage:
    return cast("PlannedStage", SimpleNamespace(name="reward", gates={"accuracy": bounds}))


def made(after: float, interval: Any = (0.78, 0.86)) -> Finished:
    result = Result("reward", "accuracy", 0.5, after, rows=300, interval=interval)
    return cast("Finished", SimpleNamespace(results=(result,), folder=Path("runs/stages/reward-1")))


def test_a_gate_that_fails_tells_the_interval() -> None:
    told = r"gates\.accuracy: 0\.82 \(95 % 0\.78 to 0\.86\) is below its minimum 0\.9"

    with pytest.raises(GateError, match=told):
        check_gates(gated(min=0.9), made(0.82))


def test_a_gate_that_other_rows_might_turn_round_is_doubted() -> None:
    (told,) = doubts(gated(min=0.8), made(0.82))

    assert told == (
        "accuracy 0.82 (95 % 0.78 to 0.86) passes its gate by less than other rows might move it",
        "measure on more rows than 300, or move the gate",
    )


@pytest.mark.parametrize(
    ("bounds", "interval"), [({"min": 0.7}, (0.78, 0.86)), ({"min": 0.8}, None), ({"min": 0.9}, (0.78, 0.95))]
)
def test_what_is_sure_or_fails_or_unknown_is_not_doubted(bounds: Any, interval: Any) -> None:
    assert [*doubts(gated(**bounds), made(0.82, interval))] == []
