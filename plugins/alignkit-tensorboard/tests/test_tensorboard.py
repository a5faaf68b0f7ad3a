"""What TensorBoard reads back is what the run told."""

from pathlib import Path

import pytest

from alignkit.testing import FIGURES, track

pytest.importorskip("tensorboard")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_tensorboard_has_the_figures_settings_and_samples_of_a_run_that_was_interrupted(tmp_path: Path) -> None:
    from alignkit_tensorboard import tensorboard
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = track(tensorboard, tmp_path)

    read = EventAccumulator(str(run.folder)).Reload()
    scalars = {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    tensors = {tag: [one.tensor_proto for one in read.Tensors(tag)] for tag in read.Tags()["tensors"]}
    assert scalars == {name: list(values.items()) for name, values in FIGURES.items()}
    settings, samples = (tensors[tag][0].string_val[0].decode() for tag in ("settings", "finetune/samples"))
    assert [len(told) for told in tensors.values()] == [1, 1]
    assert "| finetune/learning_rate | 1e-05 |" in settings
    assert samples.splitlines()[2] == "| What \\| is it?<br>Say. | A test. | 0.5 |"
