"""`alignkit new` writes a package that installs, and passes its own tests at once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.errors import RecipeError
from alignkit.scaffold import new_package


@pytest.mark.slow
def test_a_new_package_is_offered_and_passes_its_own_tests(tmp_path: Path) -> None:
    folder = new_package("sim-po", tmp_path)
    where = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(where), str(folder)], check=True)
    path = os.pathsep.join([str(where), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", *command], env=environment, cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    assert "beta" in run("alignkit", "methods", "sim-po")
    assert re.search(r"\b2\d passed", run("pytest", "-q", "-p", "no:cacheprovider", "tests"))


@pytest.mark.parametrize("name", ["SimPO", "1po", "a b", "../x", ""])
def test_a_name_that_no_method_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refusal:
        new_package(name, tmp_path)

    assert str(refusal.value) == f"alignkit new: {name!r} is no name of a method; use a-z, 0-9 and hyphens"


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    folder = new_package("my-method", tmp_path)

    with pytest.raises(RecipeError) as refusal:
        new_package("my-method", tmp_path)

    assert str(refusal.value) == f"{folder}: the folder is there already; choose another name, or remove it"


@pytest.mark.parametrize("name", ["ppo", "evaluate"])
def test_a_name_that_a_method_has_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refusal:
        new_package(name, tmp_path)

    assert str(refusal.value) == f"alignkit new: {name!r} is a method of alignkit; choose another name"
    assert list(tmp_path.iterdir()) == []
