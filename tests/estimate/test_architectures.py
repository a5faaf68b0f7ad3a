"""Every method on small models of many architectures; the whole sweep is in the slow lane."""

import pytest
from architectures import ARCHITECTURES, STAGES, Found, sweep

FEW = ("gpt2", "granite", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2_moe, window", "lfm2")))
QUICK = ("sft", "reward", "ppo, frozen", "grpo")


def fails(found: Found) -> dict[str, str]:
    """Give what neither runs nor is refused before it is trained."""
    return {stage: told for stage, told in found.stages.items() if told != "ok" and not told.startswith("refused: ")}


@pytest.mark.parametrize("name", FEW)
def test_common_architectures_run(name, tmp_path) -> None:
    ((_, found),) = sweep([name], QUICK, tmp_path)

    assert found.stages == dict.fromkeys(QUICK, "ok")
    assert found.apart < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_stage_of_an_architecture_runs_or_is_refused_beforehand(name, tmp_path) -> None:
    ((_, found),) = sweep([name], list(STAGES), tmp_path)

    assert fails(found) == {}
    assert found.apart < 1e-5
