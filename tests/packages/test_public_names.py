"""The public interface, name by name: a change of a signature is seen here before an author of a package meets it."""

import ast
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import alignkit
import alignkit.http
import alignkit.kit
from alignkit.contract import hookspecs
from alignkit.contract.settings import Settings, described
from alignkit.contract.stage import Stage

SNAPSHOT = Path(__file__).parent / "public_names.txt"
PUBLIC = [
    (module.__name__, name, getattr(module, name))
    for module in (alignkit, alignkit.http, alignkit.kit)
    for name in module.__all__
]


def shown(value: Any) -> str:
    """Return a name's signature, or the fields of a class that is one of settings or facts."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        return f"({', '.join(f'{name}: {field.annotation}' for name, field in value.model_fields.items())})"
    if inspect.ismodule(value):
        return " ".join(name for name in vars(value) if not name.startswith("_") and callable(getattr(value, name)))
    try:
        return str(inspect.signature(value))
    except (TypeError, ValueError):
        return str(value)


def test_every_public_name_has_the_signature_that_is_written_down() -> None:
    lines = [f"{module}.{name} {shown(value)}" for module, name, value in PUBLIC]
    lines += [f"Stage.{name} {shown(value)}" for name, value in vars(Stage).items() if inspect.isfunction(value)]
    lines += [f"hook {name} {shown(value)}" for name, value in vars(hookspecs).items() if name.startswith("alignkit_")]
    text = "\n".join(line.replace(str(Path.cwd()), "") for line in lines) + "\n"
    if "ALIGNKIT_SNAPSHOT" in os.environ:  # write it anew, and look at the difference
        SNAPSHOT.write_text(text, "utf-8")

    assert text == SNAPSHOT.read_text("utf-8"), (
        "if this is meant: ALIGNKIT_SNAPSHOT=1 pytest tests/packages/test_public_names.py"
    )


@pytest.mark.parametrize(("name", "value"), [(name, value) for _, name, value in PUBLIC], ids=[n for _, n, _ in PUBLIC])
def test_every_public_name_says_what_it_is(name: str, value: Any) -> None:
    if not isinstance(value, type) and not inspect.isroutine(value) and not inspect.ismodule(value):
        return  # a type's other name
    own = inspect.getdoc(value) or ""

    assert own
    assert not isinstance(value, type) or own != inspect.getdoc(value.__base__)


def test_every_setting_of_a_public_class_is_described() -> None:
    kinds = [value for _, _, value in PUBLIC if isinstance(value, type) and issubclass(value, Settings)]
    silent = [f"{kind.__name__}.{name}" for kind in kinds for name, field in described(kind).model_fields.items()
              if not field.description]  # fmt: skip

    assert silent == []


def test_type_checkers_see_the_names_that_there_are_where_they_are() -> None:
    tree = ast.parse(Path(str(alignkit.__file__)).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {(name.name, node.module) for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}

    assert seen == set(alignkit._HOMES.items())
