"""What is missing for stages to be started on a machine."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from fake_slurm import on_path

from alignkit.doctor.facts import Disk
from alignkit.doctor.findings import GIB, Finding
from alignkit.errors import RecipeError
from alignkit.run.launching import launchers_of
from alignkit.run.machine import Machine, Ray, Slurm
from alignkit.run.reachable import findings_on
from alignkit.serve.serving import Rollouts, Serving

SHARED = Disk(folder="/home/lab/runs", total=GIB, free=GIB, writable=True, filesystem="nfs4")
OWN = Disk(folder="~/runs", total=GIB, free=GIB, writable=True, filesystem="ext4")


def told(machine: Machine, disk: Disk = SHARED) -> list[Finding]:
    return list(findings_on("cluster", machine, disk))


def test_of_this_machine_nothing_more_is_told() -> None:
    assert told(Machine(processes=8), OWN) == [
        Finding("machine", "cluster: 8 processes, among which weights are cut up where they do not fit one")
    ]


def test_what_slurm_needs_is_told_where_it_is_missing() -> None:
    assert told(Machine(start="slurm", slurm=Slurm(time="60")))[:3] == [
        Finding("machine", "cluster: one process, started by SLURM"),
        Finding("machine", "sbatch of SLURM is not on the PATH", remedy="give commands on a login node of the cluster"),
        Finding("machine", "srun of SLURM is not on the PATH", remedy="give commands on a login node of the cluster"),
    ]


def test_slurm_that_is_there_is_told_and_asked_for_its_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(tmp_path, monkeypatch)

    good, bad = (told(Machine(start="slurm", slurm=Slurm(time="60", partition=name))) for name in ("full", "ful"))

    assert good[1].fact.endswith(", sbatch, srun, squeue, scancel")
    assert good[2:] == [Finding("machine", "/home/lab/runs is on nfs4, which nodes may share")]
    assert bad[2] == Finding("machine", "SLURM knows no partition 'ful'", remedy="sinfo lists those that there are")


def test_ray_that_is_missing_or_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(start="ray", ray=Ray(address="ray://127.0.0.1:9", resources={"CPU": 1}))
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = told(machine)[1]
    found = ModuleType("ray")
    found.__spec__ = ModuleSpec("ray", None)
    monkeypatch.setitem(sys.modules, "ray", found)

    assert missing == Finding("machine", "Ray is not installed", remedy='pip install "alignkit[ray]"')
    assert told(machine)[1] == Finding(
        "machine",
        "nobody answers at ray://127.0.0.1:9 (Connection refused)",
        remedy="look at the cluster by `ray status`, or correct the address in machines.toml",
    )


def test_a_cluster_of_this_computer_needs_no_disk_that_others_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    found = told(Machine(start="ray", ray=Ray(resources={"CPU": 1})), OWN)

    assert [one.fact for one in found] == ["cluster: one process, started by Ray", "Ray is not installed"]


def test_a_command_that_is_not_there_is_told() -> None:
    missing, there = (told(Machine(start="command", command=(word, "{run}")))[1] for word in ("qsubx", "sh"))

    assert missing == Finding(
        "machine", "qsubx is not on the PATH", remedy="install it, or correct command in machines.toml"
    )
    assert there.remedy == ""


def test_a_disk_of_this_computer_is_a_warning() -> None:
    assert told(Machine(start="command", command=("{run}",)), OWN)[-1] == Finding(
        "machine",
        "~/runs is on ext4 of this computer, which nodes may not see",
        remedy="choose a folder that all nodes see under the same name, with --runs DIR",
    )


def test_servers_that_are_not_there_are_told() -> None:
    started, listening = Rollouts(vllm="/nowhere/vllm"), Serving(urls=("http://127.0.0.1:9",))

    assert told(Machine(rollouts=started, rewards=listening), OWN)[1:] == [
        Finding(
            "machine",
            "/nowhere/vllm is not there",
            remedy="scripts/vllm.sh DIR makes its environment; correct rollouts.vllm in machines.toml",
        ),
        Finding(
            "machine",
            "nobody answers at http://127.0.0.1:9",
            remedy="start vllm serve there, or correct rewards.urls in machines.toml",
        ),
    ]


def test_a_server_that_cannot_be_started_is_refused_before_the_first_stage() -> None:
    with pytest.raises(RecipeError) as refusal:
        launchers_of(Machine(rollouts=Rollouts(vllm="/nowhere/vllm")), Path("runs"), jobs=1, fork=False, offline=True)

    assert str(refusal.value).startswith("machines.toml, rollouts: there is no command '/nowhere/vllm'; name the vllm")
