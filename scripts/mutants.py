"""Change the code in small ways, one at a time, and tell which changes no test notices; see docs/mutants.md.

    make mutants                                all groups
    .venv/bin/python scripts/mutants.py plan    one of them

mutmut does the work, in copies under build/mutants/; there, `mutmut show NAME` prints what was changed. Each change is
tried on those tests of its group that reach the function. Fails where fewer than 90 % are noticed.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "mutants"
COPIED = ("alignkit", "alignkit_pytest.py", "benchmarks", "plugins", "pyproject.toml", "recipes", "tests")
BAR = 0.9

LEFT_OUT = (
    "imports_nothing_heavy",  # these start Python anew, where a changed module does not find mutmut's settings
    "fixtures_have_our_name",
    "started_by_hand",
    "traceback_is_in_the_log",  # reads what mutmut prints meanwhile
    "opened_scores",  # and these take seconds, and notice little that others do not
    "any_overrides",
    "any_bytes",
    "any_bit",
)


@dataclass(frozen=True)
class Group:
    """Files that are changed, and the tests that shall notice it: those that are near and take milliseconds."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS = {
    "losses": Group(("training/losses",), ("losses", "group_losses")),
    "plan": Group(
        (
            *("plan/inactive", "plan/pin", "plan/plan", "plan/planner", "plan/wiring"),
            *("recipe/fingerprint", "recipe/requires", "recipe/validate"),
        ),
        ("fingerprint", "kinds", "plan", "recipe", "wiring"),
    ),
    "store": Group(
        tuple(f"store/{name}" for name in ("checkpoints", "durable", "journal", "locks", "notes", "results", "rundir")),
        ("fingerprint", "rundir", "stage", "worker"),
    ),
}


def main(names: list[str]) -> int:
    shares = [_share(name) for name in names or GROUPS]
    return int(min(shares) < BAR)


def _share(name: str) -> float:
    """Run mutmut on a group, and print what was not noticed and how much was."""
    folder = _copy(name, GROUPS[name])
    mutmut = [sys.executable, "-m", "mutmut"]
    environment = os.environ | {"CI": "1"}  # property tests draw the same examples each time
    subprocess.run([*mutmut, "run"], cwd=folder, env=environment, check=True)
    told = subprocess.run([*mutmut, "results", "--all", "true"], cwd=folder, capture_output=True, text=True, check=True)
    ends = [line.strip().rsplit(": ", 1) for line in told.stdout.splitlines() if line.strip().startswith("alignkit.")]
    for mutant, end in ends:
        if end != "killed":
            print(f"{end}: {mutant}")
    counts = Counter(end for _, end in ends)
    noticed = counts["killed"] + counts["timeout"]
    print(f"{name}: {len(ends)} changes, {noticed} noticed ({noticed / len(ends):.1%})")
    return noticed / len(ends)


def _copy(name: str, group: Group) -> Path:
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in COPIED:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    settings = {
        "source_paths": ["alignkit"],
        "only_mutate": [f"alignkit/{file}.py" for file in group.files],
        "also_copy": list(COPIED),
        "pytest_add_cli_args": ["-k", " and ".join(f"not {word}" for word in LEFT_OUT)],
        "pytest_add_cli_args_test_selection": [f"tests/test_{test}.py" for test in group.tests],
    }
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        # what JSON writes for texts and lists of them is TOML as well
        file.write("\n[tool.mutmut]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
