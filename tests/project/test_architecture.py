"""The house's rules that no linter knows: names that stand once, and the order of the rooms in words."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("alignkit/**/*.py"), *ROOT.glob("plugins/alignkit-*/alignkit_*/*.py")])
MANY = {"__init__.py", "__main__.py"}
LOCAL = {"BenchmarkStage"}
"""Class names that may stand more than once."""


def repeated(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def test_a_file_name_stands_once_in_the_tree() -> None:
    assert repeated([file.name for file in FILES if file.name not in MANY]) == []


def test_no_two_file_names_differ_by_a_plural_alone() -> None:
    names = {file.stem for file in FILES}

    assert sorted(name for name in names if f"{name}s" in names) == []


def test_a_class_name_stands_once_in_the_project() -> None:
    found = [
        node.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name not in LOCAL
    ]

    assert repeated(found) == []


def test_every_room_says_what_stands_there() -> None:
    rooms = sorted(path for path in (ROOT / "alignkit").iterdir() if (path / "__init__.py").is_file())

    assert [room.name for room in rooms if not ast.get_docstring(ast.parse((room / "__init__.py").read_text()))] == []


def test_nothing_asks_settings_for_what_they_may_not_have() -> None:
    asked = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr")
        and "settings" in ast.unparse(node.args[0])
    ]

    assert asked == []


def test_two_files_speak_to_other_processes() -> None:
    naming = [file for file in FILES if "torch.distributed" in file.read_text("utf-8")]

    assert [file.name for file in naming if file.parent.name != "run"] == ["parallel.py", "sharding.py"]
