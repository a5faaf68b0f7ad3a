import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pluggy
import pytest
from packaging.version import Version

from alignkit.doctor.examine import ask_torch, report
from alignkit.doctor.facts import Device, Disk, Doctor, Memory, Package, Plugin, Torch
from alignkit.doctor.findings import GIB, Finding, as_dict, findings, render
from alignkit.plugins import Broken, Origin, Plugins

HEALTHY = Doctor(
    alignkit="0.1.0",
    python="3.11.7",
    executable="/usr/bin/python3",
    system="Linux 6.1 x86_64",
    packages=(Package(name="torch", version="2.13.0+cpu", wanted=">=2.10", fits=True),),
    cores=2,
    memory=Memory(total=16 * GIB, free=8 * GIB),
    torch=Torch(version="2.13.0+cpu", built_for="cpu", instructions="AVX2", threads=2, seconds=1.5),
    disk=Disk(folder="~/runs", total=200 * GIB, free=100 * GIB, writable=True, filesystem="ext4"),
    environment={},
    hub_cache="~/.cache/huggingface/hub",
    hub_token=False,
    plugins=(Plugin(package="alignkit 0.1.0", offers=("clm", "ppo")),),
)
NO_PLUGINS = Plugins(pluggy.PluginManager("alignkit"), methods={}, rewards={}, origins={}, clashes={})
GPU = Device(kind="cuda", name="NVIDIA L4", total=24 * GIB, free=20 * GIB, bf16=True)

Examine = Callable[..., Doctor]


@pytest.fixture
def examine(tmp_path: Path) -> Examine:
    """Give `report` with everything around it replaced: torch, plugins, control group, environment."""

    def look(**given: Any) -> Doctor:
        around: dict[str, Any] = {
            "plugins": NO_PLUGINS,
            "torch": Torch,
            "cgroup": tmp_path,
            "environment": {},
        }
        return report(tmp_path / "runs", **(around | given))

    return look


def warnings(sick: Doctor) -> list[Finding]:
    return [finding for finding in findings(sick) if finding.remedy]


def about(subject: str, patient: Doctor) -> list[str]:
    return [finding.fact for finding in findings(patient) if finding.subject == subject]


def test_a_healthy_machine_is_told_line_by_line_without_a_warning() -> None:
    assert render(HEALTHY).splitlines() == [
        "ok    alignkit  0.1.0, Python 3.11.7, Linux 6.1 x86_64",
        "ok    packages  torch 2.13.0+cpu",
        "ok    cores     2 cores, torch uses 2 threads",
        "ok    memory    8.0 GiB free of 16.0 GiB",
        "ok    torch     2.13.0+cpu, built for cpu, AVX2, imported in 1.5 s",
        "ok    gpu       none; stages run on the CPU",
        "ok    disk      100.0 GiB free of 200.0 GiB at ~/runs",
        "ok    hub       online, without a token, cache ~/.cache/huggingface/hub",
        "ok    telemetry off",
        "ok    plugin    alignkit 0.1.0: offers clm, ppo",
        "no warnings",
    ]


def test_a_warning_has_its_remedy_below_it_and_is_counted() -> None:
    sick = HEALTHY.model_copy(update={"memory": Memory(total=16 * GIB, free=GIB)})

    assert render(sick).splitlines()[3:5] == [
        "warn  memory    1.0 GiB free of 16.0 GiB",
        "                -> end other programs, or take a smaller model or batch",
    ]
    assert render(sick).endswith("\n1 warning")


def test_the_facts_are_plain_json_with_the_warnings_beside_them() -> None:
    sick = HEALTHY.model_copy(update={"memory": Memory(total=16 * GIB, free=GIB)})

    told = json.loads(json.dumps(as_dict(sick)))

    assert told["memory"] == {"total": 16 * GIB, "free": GIB}
    assert told["warnings"] == [
        {
            "subject": "memory",
            "fact": "1.0 GiB free of 16.0 GiB",
            "remedy": "end other programs, or take a smaller model or batch",
        }
    ]


@pytest.mark.parametrize(
    ("found", "fact"),
    [("1.12.0", "trl is 1.12.0, wanted <2,>=1.16"), (None, "trl is missing, wanted <2,>=1.16")],
)
def test_a_library_that_does_not_fit_comes_with_the_pip_line(found: str | None, fact: str) -> None:
    sick = HEALTHY.model_copy(
        update={"packages": (Package(name="trl", version=found, wanted="<2,>=1.16", fits=False),)}
    )

    assert warnings(sick) == [Finding(subject="packages", fact=fact, remedy="pip install 'trl<2,>=1.16'")]


def test_more_threads_than_cores_are_a_warning() -> None:
    sick = HEALTHY.model_copy(update={"cores": 1})

    assert warnings(sick) == [
        Finding(subject="cores", fact="1 core, torch uses 2 threads", remedy="export OMP_NUM_THREADS=1")
    ]


def test_torch_that_says_nothing_is_a_warning_and_the_other_facts_are_told() -> None:
    sick = HEALTHY.model_copy(update={"torch": Torch(problem="torch gave no answer within 60 s")})

    assert warnings(sick) == [
        Finding(
            subject="torch",
            fact="torch gave no answer within 60 s",
            remedy="python -c 'import torch' shows it whole",
        )
    ]
    assert about("cores", sick) == ["2 cores"]


def test_a_gpu_is_named_with_its_memory() -> None:
    well = HEALTHY.model_copy(update={"torch": HEALTHY.torch.model_copy(update={"devices": (GPU,)})})

    assert about("gpu", well) == ["NVIDIA L4 (cuda), 20.0 GiB free of 24.0 GiB, bf16"]


def test_a_gpu_that_does_not_compute_is_a_warning() -> None:
    broken = GPU.model_copy(update={"problem": "CUDA error: out of memory"})
    sick = HEALTHY.model_copy(update={"torch": HEALTHY.torch.model_copy(update={"devices": (broken,)})})

    assert warnings(sick) == [
        Finding(
            subject="gpu",
            fact="NVIDIA L4 (cuda), 20.0 GiB free of 24.0 GiB, bf16; does not compute: CUDA error: out of memory",
            remedy="end other programs that use it, or match torch and driver: https://pytorch.org/get-started/locally",
        )
    ]


@pytest.mark.parametrize(
    ("built_for", "fact", "remedy"),
    [
        (
            "cpu",
            "an NVIDIA driver is here, but torch is built for the CPU",
            "install a build for CUDA: https://pytorch.org/get-started/locally",
        ),
        (
            "CUDA 13.0",
            "an NVIDIA driver is here, but torch, built for CUDA 13.0, sees no GPU",
            "look at CUDA_VISIBLE_DEVICES; is the driver new enough (nvidia-smi)?",
        ),
    ],
)
def test_an_idle_gpu_is_a_warning_that_tells_why(built_for: str, fact: str, remedy: str) -> None:
    idle = HEALTHY.torch.model_copy(update={"nvidia_driver": True, "built_for": built_for})

    assert warnings(HEALTHY.model_copy(update={"torch": idle})) == [Finding(subject="gpu", fact=fact, remedy=remedy)]


@pytest.mark.parametrize(
    ("change", "fact", "remedy"),
    [
        (
            {"free": GIB},
            "1.0 GiB free of 200.0 GiB at ~/runs",
            "free some space, or choose another folder with --runs DIR",
        ),
        ({"writable": False}, "~/runs cannot be written", "choose another folder with --runs DIR"),
    ],
)
def test_a_poor_place_for_runs_is_a_warning(change: dict[str, object], fact: str, remedy: str) -> None:
    sick = HEALTHY.model_copy(update={"disk": HEALTHY.disk.model_copy(update=change)})

    assert warnings(sick) == [Finding(subject="disk", fact=fact, remedy=remedy)]


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_is_told(name: str) -> None:
    offline = HEALTHY.model_copy(update={"environment": {name: "1"}})

    assert about("hub", offline) == ["never asked (offline), without a token, cache ~/.cache/huggingface/hub"]


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "off"),
        ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "off"),
        ({"HF_HUB_DISABLE_TELEMETRY": "0", "DISABLE_TELEMETRY": "0"}, "on: the environment says so"),
        ({"HF_HUB_DISABLE_TELEMETRY": "0", "DISABLE_TELEMETRY": "0", "DO_NOT_TRACK": "1"}, "off"),
    ],
)
def test_telemetry_is_off_unless_the_user_turns_it_on(environment: dict[str, str], told: str) -> None:
    assert about("telemetry", HEALTHY.model_copy(update={"environment": environment})) == [told]


def test_a_real_report_finds_the_installed_libraries_and_the_folder_that_will_hold_the_runs(
    examine: Examine, tmp_path: Path
) -> None:
    found = examine()

    assert found.alignkit == version("alignkit")
    assert version("torch") in {p.version for p in found.packages if p.name == "torch"}
    assert found.disk.folder == str(tmp_path)
    assert found.disk.free > 0
    assert found.cores >= 1


def test_torch_is_asked_in_another_process() -> None:
    found = report(Path("runs"), plugins=NO_PLUGINS)

    assert found.torch.problem == ""
    assert (
        Version(found.torch.version).public == Version(version("torch")).public
    )  # "+cu130" stands in torch's own alone
    assert found.torch.threads >= 1


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import time; time.sleep(30)", "torch gave no answer within 0.5 s"),
        (
            "raise ImportError('libcudart.so.13: no such file')",
            "torch cannot be imported: ImportError: libcudart.so.13: no such file",
        ),
        ("raise SystemExit(3)", "torch cannot be imported: exit status 3"),
        ("import os; os.kill(os.getpid(), 11)", "importing torch was ended by signal 11"),
    ],
    ids=["hangs", "fails", "ends", "crashes"],
)
def test_torch_that_cannot_be_imported_is_a_fact(code: str, problem: str) -> None:
    assert ask_torch((sys.executable, "-c", code), 0.5 if "sleep" in code else 30.0) == Torch(problem=problem)


def test_an_interpreter_that_does_not_start_is_a_fact() -> None:
    assert ask_torch(("/nowhere/python",)) == Torch(
        problem="the process that asks torch did not start: [Errno 2] No such file or directory: '/nowhere/python'"
    )


def test_a_container_that_may_use_half_a_core_has_one(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")

    assert examine().cores == 1


def test_a_container_without_a_limit_has_all_cores(examine: Examine, tmp_path: Path) -> None:
    free = examine().cores
    (tmp_path / "cpu.max").write_text("max 100000\n")

    assert examine().cores == free


def test_a_container_has_the_memory_that_it_is_allowed(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{64 * 2**20}\n")
    (tmp_path / "memory.current").write_text(f"{16 * 2**20}\n")

    assert examine().memory == Memory(total=64 * 2**20, free=48 * 2**20)


def test_a_token_is_noticed_and_never_told(examine: Examine) -> None:
    found = examine(environment={"HF_TOKEN": "hf_canary", "HF_HUB_OFFLINE": "1"})

    assert found.hub_token
    assert found.environment == {"HF_HUB_OFFLINE": "1"}
    assert "hf_canary" not in json.dumps(as_dict(found)) + render(found)


def test_a_token_file_is_noticed(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_canary")

    assert examine(environment={"HF_HOME": str(tmp_path)}).hub_token


def test_the_home_folder_is_not_told(examine: Examine) -> None:
    cache = Path.home() / "hub"

    assert examine(environment={"HF_HUB_CACHE": str(cache)}).hub_cache == "~/hub"


def test_what_packages_offer_and_what_is_broken_is_told(examine: Examine) -> None:
    core, dpo, other, heavy = (Origin(name, name, "1.0") for name in ("alignkit", "dpo", "other-dpo", "heavy"))
    plugins = Plugins(
        pluggy.PluginManager("alignkit"),
        methods={},
        rewards={},
        origins={"method:ppo": core, "method:clm": core, "method:dpo": dpo},
        clashes={"method:dpo": (dpo, other)},
        broken=(Broken(Origin("x", "alignkit-x", "2.0"), "ImportError: no y"),),
        heavy=(heavy,),
        loaded=(core, dpo, other, heavy),
    )

    assert findings(examine(plugins=plugins))[-7:] == (
        Finding(subject="plugin", fact="alignkit 1.0: offers clm, ppo"),
        Finding(subject="plugin", fact="dpo 1.0: offers dpo"),
        Finding(subject="plugin", fact="other-dpo 1.0: offers dpo"),
        Finding(subject="plugin", fact="heavy 1.0: offers nothing by name; it observes"),
        Finding(
            subject="plugin",
            fact="alignkit-x 2.0: cannot be loaded: ImportError: no y",
            remedy="update or reinstall alignkit-x; what does not need it works all the same",
        ),
        Finding(
            subject="plugin",
            fact="heavy 1.0: imports torch when loaded, so every command waits",
            remedy="tell its authors to import torch inside the functions that need it",
        ),
        Finding(
            subject="plugin",
            fact="dpo 1.0 and other-dpo 1.0: offer the same method 'dpo'",
            remedy="uninstall one of them, or name the packages to load, with commas between, in ALIGNKIT_PLUGINS",
        ),
    )
