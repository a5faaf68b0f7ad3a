"""The fixtures that alignkit brings to pytest. Nothing is imported before one of them is asked for.

It lies beside the package, not in it: pytest loads this file in every environment where alignkit is installed, and
importing anything of the package takes a quarter of a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from alignkit import Policy, Records
    from alignkit.testing import RecordingStage


pytest.register_assert_rewrite("alignkit.testing.suite")


@pytest.fixture(scope="session")
def alignkit_tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A random Llama of two layers with its tokenizer."""
    from alignkit.testing import write_tiny_policy

    return write_tiny_policy(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def alignkit_stage(tmp_path: Path) -> RecordingStage:
    """A stage that writes down what it is told."""
    from alignkit.testing import RecordingStage

    return RecordingStage(tmp_path / "stage")


@pytest.fixture
def alignkit_records(tmp_path: Path) -> Callable[..., Any]:
    """Make records of a kind from rows, some of them held out: `alignkit_records(Preferences, rows, held_out)`."""
    from alignkit.testing import write_records

    def make(
        kind: type[Records], train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]] = ()
    ) -> Records:
        return write_records(kind, tmp_path, train, held_out)

    return make
