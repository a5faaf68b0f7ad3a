"""The environment that libraries are used in: quiet, telling nobody anything, and offline if so asked."""

import logging
import os

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",  # spinning threads slow everything else down, and training on few cores too
    "TOKENIZERS_PARALLELISM": "false",  # its threads would be cut off by the fork
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # looking for a GPU then leaves the driver alone, so that forks may use it
}
"""Set where the user has not set them, before any library is imported."""


def set_environment(offline: bool) -> None:
    """Make libraries quiet, and offline if so asked. Only has full effect before they are imported."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells what it lacks of kernels, wherever it is found
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
