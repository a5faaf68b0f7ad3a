"""What MLflow gives back is what the run told."""

from pathlib import Path

import pytest

from alignkit.testing import FIGURES, track

mlflow_client = pytest.importorskip("mlflow", exc_type=ImportError)


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_has_the_figures_settings_and_samples_of_a_run_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkit_mlflow import mlflow
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)

    track(mlflow, tmp_path)

    client = MlflowClient()
    experiment = client.get_experiment_by_name("tracked")
    (run,) = client.search_runs([experiment.experiment_id])
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert {name: {one.step: one.value for one in told} for name, told in history.items()} == FIGURES
    assert sum(map(len, history.values())) == sum(map(len, FIGURES.values()))
    assert run.info.status == "FINISHED"
    assert (run.data.params["finetune/kl.adaptive"], run.data.params["seed"]) == ("True", "17")
    assert [one.path for one in client.list_artifacts(run.info.run_id, "finetune")] == ["finetune/samples.json"]
