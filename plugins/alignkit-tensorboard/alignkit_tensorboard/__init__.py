"""TensorBoard: event files in the run's folder.

They are written by TensorBoard's own writer, as torch's `SummaryWriter` writes them; importing torch for it would take
seconds and hundreds of megabytes in a process that needs none of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from alignkit import TrackedRun, TrackerFunction, hookimpl, tracker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tensorboard.compat.proto.summary_pb2 import Summary


class TensorBoardRun:
    """Writes scalars and texts."""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(run.folder))
        if not run.resumed:
            self._write(0, [_text("settings", {"setting": list(run.settings), "value": list(run.settings.values())})])

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(step, [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()])

    def show(self, stage: str, samples: Mapping[str, Sequence[object]]) -> None:
        self._write(0, [_text(f"{stage}/samples", samples)])

    def finish(self, state: str) -> None:
        self._writer.close()

    def _write(self, step: int, values: Iterable[Summary.Value]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()


def _text(tag: str, table: Mapping[str, Sequence[object]]) -> Summary.Value:
    """Return a table as Markdown, which TensorBoard's texts are."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    rows = ([_cell(value) for value in row] for row in zip(*table.values(), strict=True))
    lines = [list(table), ["---"] * len(table), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=tag, metadata=metadata, tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]))


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", "<br>")


@tracker("tensorboard")
def tensorboard(run: TrackedRun) -> TensorBoardRun:
    """Write TensorBoard's event files into the run's folder."""
    return TensorBoardRun(run)


@hookimpl
def alignkit_trackers() -> list[TrackerFunction]:
    return [tensorboard]
