"""What is built is what is installed: recipes inside, metadata right. Built offline with the installed hatchling."""

import os
import subprocess
import sys
import tarfile
import tomllib
from email import message_from_string
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = PROJECT["version"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and from it the wheel, as an index or a distributor does."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> ZipFile:
    return ZipFile(built / f"alignkit-{VERSION}-py3-none-any.whl")


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    with tarfile.open(built / f"alignkit-{VERSION}.tar.gz") as archive:
        return {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}


@pytest.fixture(scope="module")
def metadata(wheel: ZipFile) -> Message:
    return message_from_string(wheel.read(f"alignkit-{VERSION}.dist-info/METADATA").decode())


def tracked(folder: str) -> set[str]:
    """List the files of a folder of the checkout, without what running leaves there."""
    files = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {file.as_posix() for file in files if "__pycache__" not in file.parts and file.suffix != ".pyc"}


def test_the_wheel_holds_every_recipe(wheel: ZipFile) -> None:
    recipes = tracked("recipes")

    assert "recipes/rlhf.toml" in recipes
    assert {f"alignkit/{recipe}" for recipe in recipes} <= set(wheel.namelist())


def test_the_wheel_holds_the_package_and_its_fixtures_and_nothing_beside_them(wheel: ZipFile) -> None:
    names = set(wheel.namelist())

    assert tracked("alignkit") <= names
    assert {name.partition("/")[0] for name in names} == {
        "alignkit",
        "alignkit_pytest.py",
        f"alignkit-{VERSION}.dist-info",
    }


def test_the_wheel_says_that_it_is_typed_and_brings_its_licence(wheel: ZipFile) -> None:
    assert {"alignkit/py.typed", f"alignkit-{VERSION}.dist-info/licenses/LICENSE"} <= set(wheel.namelist())


@pytest.mark.parametrize("plugin", [path.parent.name for path in sorted(ROOT.glob("plugins/*/pyproject.toml"))])
def test_a_plugin_that_is_published_brings_its_licence(plugin: str) -> None:
    folder = ROOT / "plugins" / plugin

    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]["license-files"] == ["LICENSE"]


def test_the_sdist_holds_what_a_distributor_needs_to_build_and_test(sdist: set[str]) -> None:
    alone = {
        *("pyproject.toml", "constraints.txt", "Makefile", ".pre-commit-config.yaml", "LICENSE", "CITATION.cff"),
        *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "hatch_build.py"),
    }

    folders = ("tests", "benchmarks", "recipes", "scripts", "docs", ".github")
    assert alone.union(*map(tracked, folders)) <= sdist


def test_the_metadata_says_what_the_project_says(metadata: Message) -> None:
    said = {key: metadata[key] for key in ("Name", "Version", "Summary", "Requires-Python", "License-Expression")}

    assert said == {
        "Name": "alignkit",
        "Version": VERSION,
        "Summary": PROJECT["description"],
        "Requires-Python": ">=3.11",
        "License-Expression": "Apache-2.0",
    }
    readme = str(metadata.get_payload())
    assert readme.startswith("# alignkit\n")
    assert "](docs/" not in readme
    assert set(metadata.get_all("Project-URL", [])) == {f"{name}, {url}" for name, url in PROJECT["urls"].items()}


def test_every_package_beside_it_is_an_extra_and_those_with_methods_are_one() -> None:
    packages = {path.parent.name for path in ROOT.glob("plugins/alignkit-*/pyproject.toml")}
    extras = {package.removeprefix("alignkit-") for package in packages}

    named = {Requirement(line).name for extra in extras for line in PROJECT["optional-dependencies"][extra]}
    assert named == packages
    assert Requirement(*PROJECT["optional-dependencies"]["all"]).extras == {"distill", "dpo", "online", "rlaif", "trl"}


def test_the_wheel_requires_the_floors(metadata: Message) -> None:
    required = {Requirement(line) for line in metadata.get_all("Requires-Dist", [])}

    assert {r for r in required if r.marker is None} == {Requirement(line) for line in PROJECT["dependencies"]}


def test_the_wheel_offers_the_command_and_the_plugin_for_tests(wheel: ZipFile) -> None:
    points = wheel.read(f"alignkit-{VERSION}.dist-info/entry_points.txt").decode()

    assert (
        points == "[console_scripts]\nalignkit = alignkit.cli:main\n\n[pytest11]\nalignkit_pytest = alignkit_pytest\n"
    )


def test_the_unpacked_wheel_plans_the_recipe_that_it_brings(wheel: ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "ALIGNKIT_PLUGINS": ""}
    plan = [sys.executable, "-m", "alignkit", "plan", "rlhf.toml"]

    told = subprocess.run(plan, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert told.returncode == 0, told.stderr


def test_each_direct_dependency_has_a_tested_series() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    bounds = {Requirement(line).name for line in lines if line and not line.startswith("#")}
    optional = [line for extra in ("dev", "gguf") for line in PROJECT["optional-dependencies"][extra]]

    assert {Requirement(line).name for line in [*PROJECT["dependencies"], *optional]} - bounds == set()


def test_citation_and_changelog_know_the_version() -> None:
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert VERSION in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_each_decision_is_in_the_index() -> None:
    decisions = ROOT / "docs" / "decisions"
    pages = {page.name for page in decisions.glob("[0-9]*.md")}
    index = (decisions / "README.md").read_text(encoding="utf-8")

    assert {page for page in pages if f"]({page})" not in index} == set()
