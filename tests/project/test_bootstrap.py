"""The set-up script, run with a stand-in for Python that writes down how it is called."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLING = "installing alignkit, its plugins and the development tools (1.5 GB on disk; a minute or two)"
STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in
  --version) echo "Python VERSION" ;;
  *version_info*) exit STATUS ;;
  "-m venv --clear .venv")
    mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo "command = python -m venv $PWD/.venv" > .venv/pyvenv.cfg ;;
  "-m pip install -qq --only-binary :all: uv") exit 1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy what the script reads, with one plugin beside the core."""
    folder = tmp_path / "check out"
    plugin = folder / "plugins" / "alignkit-dpo"
    for place in (folder / "scripts", plugin):
        place.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "bootstrap.sh", folder / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (plugin / "pyproject.toml").write_text("[project]\n")
    return folder


def bootstrap(checkout: Path, version: str = "3.11.7") -> tuple[int, list[str], list[str]]:
    """Run the script; give its status, what it said, and how it called Python to make and to install."""
    python, calls = checkout.parent / "python", checkout.parent / "calls"
    status = "0" if version >= "3.11" else "1"
    python.write_text(STAND_IN.replace("VERSION", version).replace("STATUS", status))
    python.chmod(0o755)
    calls.write_text("")
    run = subprocess.run(
        ["bash", str(checkout / "scripts" / "bootstrap.sh")],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "CALLS": str(calls)},
        capture_output=True,
        text=True,
        cwd=checkout.parent,
    )
    made = [call for call in calls.read_text().splitlines() if call.startswith(("-m venv", "-m pip install"))]
    return run.returncode, [line.removeprefix("bootstrap: ") for line in run.stderr.splitlines()], made


def test_the_first_run_installs_core_and_plugins_by_one_command_under_the_constraints(checkout: Path) -> None:
    assert bootstrap(checkout) == (
        0,
        ["making .venv with Python 3.11.7", INSTALLING, "ready: .venv/bin/alignkit"],
        [
            "-m venv --clear .venv",
            "-m pip install -qq --only-binary :all: uv",
            "-m pip install -qq --constraint constraints.txt --editable .[dev] --editable ./plugins/alignkit-dpo",
        ],
    )


def test_a_plugin_that_brings_much_is_left_to_be_installed_by_hand(checkout: Path) -> None:
    (checkout / "plugins" / "alignkit-wandb").mkdir()
    (checkout / "plugins" / "alignkit-wandb" / "pyproject.toml").write_text("[project]\n")

    assert not any("wandb" in call for call in bootstrap(checkout)[2])


def test_a_repeat_does_nothing_and_says_nothing(checkout: Path) -> None:
    bootstrap(checkout)

    assert bootstrap(checkout) == (0, [], [])


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "plugins/alignkit-dpo/pyproject.toml"])
def test_a_changed_file_installs_again_into_the_same_environment(checkout: Path, name: str) -> None:
    bootstrap(checkout)
    with (checkout / name).open("a") as file:
        file.write("# changed\n")

    assert bootstrap(checkout)[1] == [INSTALLING, "ready: .venv/bin/alignkit"]


def test_another_python_makes_the_environment_anew(checkout: Path) -> None:
    bootstrap(checkout)

    assert bootstrap(checkout, "3.12.1")[1][0] == "making .venv with Python 3.12.1"


def test_a_moved_checkout_makes_the_environment_anew(checkout: Path) -> None:
    bootstrap(checkout)
    moved = checkout.rename(checkout.parent / "moved")

    assert bootstrap(moved)[1][0] == "making .venv with Python 3.11.7"


def test_an_old_python_is_refused(checkout: Path) -> None:
    python = checkout.parent / "python"

    assert bootstrap(checkout, "3.10.4") == (
        1,
        [
            f"alignkit needs Python 3.11 or newer; {python}: Python 3.10.4",
            "Install one, or name the one to use: PYTHON=/path/to/python3.11 make test",
        ],
        [],
    )


def test_uv_is_used_where_it_is_at_hand(checkout: Path) -> None:
    bootstrap(checkout)
    uv = checkout / ".venv" / "bin" / "uv"
    uv.write_text('#!/bin/sh\necho "-m pip install by uv: $*" >> "$CALLS"\n')
    uv.chmod(0o755)
    (checkout / "constraints.txt").write_text("torch<2.14\n")

    assert bootstrap(checkout)[2] == [
        "-m pip install by uv: pip install --quiet --python .venv/bin/python --compile-bytecode "
        "--constraint constraints.txt --editable .[dev] --editable ./plugins/alignkit-dpo"
    ]


def test_pip_goes_on_where_uv_fails(checkout: Path) -> None:
    bootstrap(checkout)
    uv = checkout / ".venv" / "bin" / "uv"
    uv.write_text("#!/bin/sh\nexit 2\n")
    uv.chmod(0o755)
    (checkout / "constraints.txt").write_text("torch<2.14\n")

    assert bootstrap(checkout)[:2] == (
        0,
        [INSTALLING, "uv could not install it; trying pip", "ready: .venv/bin/alignkit"],
    )
