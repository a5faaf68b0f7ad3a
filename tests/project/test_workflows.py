"""What contributors and CI rely on: the targets of make, the workflows, and the versions that they name."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE)


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def make(folder: Path, target: str) -> str:
    command = ["make", "-f", str(ROOT / "Makefile"), target]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_help_names_every_target(tmp_path: Path) -> None:
    told = re.findall(r"^make ([a-z]+) ", make(tmp_path, "help"), re.MULTILINE)

    assert sorted(told) == sorted(set(TARGETS) - {"help"})


def test_clean_keeps_results_and_the_environment(tmp_path: Path) -> None:
    kept = ["runs/a/__pycache__/kept", ".venv/lib/__pycache__/kept", "alignkit/kept.py"]
    gone = ["dist/a.whl", "plugins/a/dist/a.whl", "build/a", ".mypy_cache/a", ".coverage", "alignkit/__pycache__/a.pyc"]
    for name in [*kept, *gone]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    make(tmp_path, "clean")

    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        kept
    )


@pytest.mark.parametrize("name", ["ci", "docs", "nightly", "release"])
def test_a_workflow_runs_targets_that_there_are(name: str) -> None:
    jobs = read_yaml(f".github/workflows/{name}.yml")["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if step.get("run", "").startswith("make ")]

    assert runs
    assert {run.removeprefix("make ") for run in runs} <= set(TARGETS)


def test_a_release_builds_every_package_and_needs_no_password() -> None:
    jobs = read_yaml(".github/workflows/release.yml")["jobs"]

    assert re.search(r"^build: setup\n\tfor package in \. plugins/alignkit-\*;", MAKEFILE, re.MULTILINE)
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert not re.search(
        "secrets|password", (ROOT / ".github/workflows/release.yml").read_text("utf-8").split("jobs:")[1]
    )


def test_the_container_has_the_packages_of_the_extra_all() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]

    assert {f"alignkit-{name}" for name in Requirement(*extras["all"]).extras} == set(
        re.findall(r"\./plugins/(\S+)", text)
    )


def test_the_development_container_is_set_up_by_a_target_that_there_is() -> None:
    told = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))

    assert told["postCreateCommand"].removeprefix("make ") in TARGETS


def test_every_python_that_the_metadata_names_is_tested() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    named = [line.rpartition(" ")[2] for line in classifiers if re.search(r"Python :: 3\.\d+$", line)]

    assert read_yaml(".github/workflows/ci.yml")["jobs"]["check"]["strategy"]["matrix"]["python"] == named


def test_the_ruff_of_pre_commit_is_the_tested_one() -> None:
    pinned = next(
        Requirement(line)
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if line.startswith("ruff=")
    )
    ruff = next(repo for repo in read_yaml(".pre-commit-config.yaml")["repos"] if "ruff" in repo["repo"])

    assert ruff["rev"].removeprefix("v") in pinned.specifier
