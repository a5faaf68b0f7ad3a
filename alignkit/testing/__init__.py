"""For authors of methods: a stage that writes down what it is told, tiny inputs, and a conformance suite. For those of
trackers: a run that is interrupted and goes on.

Where alignkit is installed, pytest has its fixtures `alignkit_tiny_policy`, `alignkit_stage` and `alignkit_records`.
The suite is one line:

    TestSimPO = conformance(simpo, {"learning_rate": 1e-2, "batch": 4}, effects=["lora.rank=4"])
"""

from alignkit.run.stopping import Left
from alignkit.testing.examples import write_inputs, write_records, write_tiny_policy, write_tiny_reward
from alignkit.testing.recording import RecordingStage, run_method
from alignkit.testing.suite import Conformance, conformance, same_weights, undocumented, weights_of
from alignkit.testing.tracked import FIGURES, SAMPLE, SETTINGS, track

__all__ = [
    "FIGURES",
    "SAMPLE",
    "SETTINGS",
    "Conformance",
    "Left",
    "RecordingStage",
    "conformance",
    "run_method",
    "same_weights",
    "track",
    "undocumented",
    "weights_of",
    "write_inputs",
    "write_records",
    "write_tiny_policy",
    "write_tiny_reward",
]
