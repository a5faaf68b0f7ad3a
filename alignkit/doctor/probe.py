"""Ask torch what it is and which GPUs it sees; a process of its own does so, for torch may be broken or hang.

python -P -m alignkit.doctor.probe
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from alignkit.doctor.facts import Device, Torch


def probe_torch() -> Torch:
    """Import torch and look at its devices."""
    start = time.perf_counter()
    import torch

    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "cpu"
    if torch.version.hip:
        built_for = f"ROCm {torch.version.hip}"
    return Torch(
        version=torch.__version__,
        built_for=built_for,
        instructions=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        seconds=round(time.perf_counter() - start, 2),
        devices=tuple(_devices()),
        nvidia_driver=Path("/proc/driver/nvidia/version").exists(),
    )


def _devices() -> Iterator[Device]:
    import torch

    for index in range(torch.cuda.device_count()):
        place = f"cuda:{index}"
        try:
            free, total = torch.cuda.mem_get_info(index)
            problem = _try_adding(place)
        except RuntimeError as error:
            free, total, problem = 0, torch.cuda.get_device_properties(index).total_memory, _first_line(error)
        name, bf16 = torch.cuda.get_device_name(index), torch.cuda.is_bf16_supported()
        yield Device(kind="cuda", name=name, total=total, free=free, bf16=bf16, problem=problem)
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
        yield Device(kind="mps", name="Apple", total=total, free=free, bf16=True, problem=_try_adding("mps"))


def _try_adding(place: str) -> str:
    """Return what goes wrong when the device has to add two numbers, or nothing."""
    import torch

    try:
        total = torch.ones(2, device=place).sum().item()
    except RuntimeError as error:
        return _first_line(error)
    return "" if total == 2 else f"1 + 1 = {total}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


if __name__ == "__main__":
    print(json.dumps(probe_torch().model_dump()))
