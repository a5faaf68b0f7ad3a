"""Every pass of ours keeps to the device of its model, tried on one that is not there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "fake_device.py"


@pytest.mark.slow
def test_no_pass_mixes_the_models_device_with_another() -> None:
    ended = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)

    failures = json.loads(ended.stdout)
    assert "FakeTensorDeviceMismatchError" in failures.pop("mixed")
    assert len(failures) == 11
    assert {name: why for name, why in failures.items() if why} == {}
