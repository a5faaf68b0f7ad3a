"""What Trackio gives back is what the run told."""

from pathlib import Path

import pytest

from alignkit.testing import FIGURES, SAMPLE, SETTINGS, track


@pytest.mark.filterwarnings("ignore")  # Trackio's own
def test_trackio_has_the_figures_settings_and_samples_of_a_run_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))  # read where Trackio is imported
    pytest.importorskip("trackio")
    from alignkit_trackio import trackio
    from trackio.sqlite_storage import SQLiteStorage

    run = track(trackio, tmp_path)

    rows = SQLiteStorage.get_logs("tracked", run.name)
    figures = {name: [(row["step"], row[name]) for row in rows if name in row] for name in FIGURES}
    assert figures == {name: list(values.items()) for name, values in FIGURES.items()}
    assert SETTINGS.items() <= SQLiteStorage.get_run_config("tracked", run.name).items()
    assert [row["finetune/samples"]["_value"] for row in rows if "finetune/samples" in row] == [[SAMPLE]]
