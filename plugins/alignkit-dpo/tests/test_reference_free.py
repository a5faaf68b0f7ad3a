"""SimPO, ORPO and CPO: what every method must keep, and what they tell."""

import pytest
from alignkit_dpo.reference_free import CPOSettings, cpo, orpo, simpo
from pydantic import ValidationError

from alignkit.testing import RecordingStage, conformance, run_method, write_inputs

SETTINGS = {"learning_rate": 1e-2, "epochs": 1, "batch": 16, "precision": "fp32"}

# The loop is that of dpo, whose suite is quick enough for every day.
TestSimPO = pytest.mark.slow(conformance(simpo, SETTINGS, effects=["alpha=0.5", "sft=1.0", "lora.rank=4"]))
TestORPO = pytest.mark.slow(conformance(orpo, SETTINGS, learns="margin", effects=["lora.rank=4"]))
TestCPO = pytest.mark.slow(
    conformance(cpo, SETTINGS, learns="margin", effects=["loss=hinge", "loss=ipo", "sft=0.0", "lora.rank=4"])
)


@pytest.mark.parametrize("method", [simpo, orpo, cpo], ids=lambda method: method.name)
def test_it_raises_the_margin_and_reads_no_start(tmp_path, method) -> None:
    inputs, stage = write_inputs(method, tmp_path), RecordingStage(tmp_path / "stage")

    run_method(method, SETTINGS, stage, **inputs)

    assert set(stage.results) == {"accuracy", "margin"}
    assert stage.results["margin"][0] < stage.results["margin"][1]
    assert not [*stage.cache.glob("logprobs-*")]


def test_smoothing_that_a_loss_does_not_know_is_refused() -> None:
    with pytest.raises(ValidationError) as refusal:
        CPOSettings(loss="hinge", label_smoothing=0.1)

    assert refusal.value.errors()[0]["msg"] == (
        "Value error, loss hinge has no label_smoothing; take loss sigmoid, or leave it out"
    )
