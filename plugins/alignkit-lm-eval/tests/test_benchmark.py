"""Benchmark: its figures are those that the harness's own command gives for the saved model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignkit import Policy, RecipeError, Result
from alignkit.testing import RecordingStage, run_method

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WRITTEN = """
task: tiny_written
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/written.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: ["[a-zA-Z ]"]}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Write two tasks, one of each kind, with their rows."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    words = ["food", "room", "good", "bad", "staff", "was", "great", "cold"]
    choices = [{"question": f"The {words[i % 8]} was", "choices": [words[i * 3 % 8], words[(i * 5 + 1) % 8]],
                "answer": i % 2} for i in range(24)]  # fmt: skip
    written = [{"question": f"{words[i % 8]} {words[i // 8]}", "answer": "." * (i % 2)} for i in range(12)]
    for name, rows in (("choice", choices), ("written", written)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("written", WRITTEN)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


@pytest.fixture
def adapter(alignkit_tiny_policy: Policy, tmp_path: Path) -> Policy:
    """Put a random adapter on the tiny policy."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(alignkit_tiny_policy.path), LoraConfig(r=4, init_lora_weights=False)
    )
    torch.manual_seed(1)
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(alignkit_tiny_policy.path).save_pretrained(tmp_path / "adapter")
    return Policy(name="adapter", fingerprint="1", path=tmp_path / "adapter")


def merged(adapter: Policy, folder: Path) -> Path:
    """Save an adapter in its base, as a model that any tool opens."""
    from alignkit.kit import load_policy

    model, tokenizer = load_policy(adapter, trainable=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_command(model: Path, tasks: Path, out: Path) -> dict[str, float]:
    """Return the figures that the harness's command writes."""
    words = [
        "--model_args",
        f"pretrained={model}",
        "--include_path",
        str(tasks),
        "--batch_size",
        "8",
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", "tiny_choice,tiny_written", *words]
    subprocess.run([*command, "--output_path", str(out)], check=True, capture_output=True)
    (file,) = out.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    return {f"{task}/{key}": value for task, values in results.items() for key, value in values.items() if "," in key}


@pytest.mark.slow
def test_figures_are_those_of_the_harness(
    alignkit_tiny_policy: Policy, adapter: Policy, tasks: Path, tmp_path: Path
) -> None:
    from alignkit_lm_eval import benchmark

    stage = RecordingStage(tmp_path / "stage")
    settings = {"tasks": ["tiny_choice", "tiny_written"], "include_path": str(tasks)}

    made = run_method(benchmark, settings, stage, policies=(alignkit_tiny_policy, adapter))

    ours = {result.name.removesuffix(" adapter"): result for result in stage.events if isinstance(result, Result)}
    before = by_command(alignkit_tiny_policy.path, tasks, tmp_path / "before")
    after = by_command(merged(adapter, tmp_path / "merged"), tasks, tmp_path / "after")
    assert set(ours) == {"tiny_choice/acc", "tiny_choice/acc_norm", "tiny_written/exact_match"}
    assert before != after
    for name, result in ours.items():
        assert (result.before, result.after) == (before[f"{name},none"], after[f"{name},none"])
        task, _, metric = name.partition("/")
        error = after[f"{task}/{metric}_stderr,none"]
        assert result.interval == pytest.approx((result.after - 1.96 * error, result.after + 1.96 * error))
        assert result.change is not None
        assert result.change[0] <= result.after - result.before <= result.change[1]
        assert (result.better, result.rows) == ("higher", 24 if task == "tiny_choice" else 12)
    assert [row["policy"] for row in made.rows()] == ["tiny", "adapter"]


@pytest.mark.slow
def test_a_policy_that_is_through_is_not_measured_again(
    alignkit_tiny_policy: Policy, tasks: Path, tmp_path: Path
) -> None:
    from alignkit_lm_eval import benchmark

    from alignkit.testing import Left

    policies = (alignkit_tiny_policy, alignkit_tiny_policy.model_copy(update={"name": "other"}))
    settings = {"tasks": ["tiny_choice"], "include_path": str(tasks), "limit": 4}
    stage = RecordingStage(tmp_path / "stage", stop_at=1)
    with pytest.raises(Left):
        run_method(benchmark, settings, stage, policies=policies)
    again = stage.again()

    run_method(benchmark, settings, again, policies=policies)

    assert [step for step, _, _ in again.logs] == [1, 2]
    assert list(again.results) == ["tiny_choice/acc other", "tiny_choice/acc_norm other"]


def test_a_task_that_there_is_not_is_refused(alignkit_tiny_policy: Policy, tmp_path: Path) -> None:
    from alignkit_lm_eval import benchmark

    with pytest.raises(RecipeError, match=r"stage 'stage': benchmark.tasks: there is no task 'no-such-task'"):
        run_method(benchmark, {"tasks": ["no-such-task"]}, RecordingStage(tmp_path), policies=(alignkit_tiny_policy,))


def test_a_changed_task_is_another_stage(tasks: Path) -> None:
    from alignkit_lm_eval import BenchmarkSettings

    def told() -> str:
        return BenchmarkSettings(tasks=("tiny_choice",), include_path=str(tasks)).content

    first = told()
    (tasks / "choice.jsonl").open("a").write("\n")

    assert told() != first
    assert BenchmarkSettings(tasks=("arc_easy",)).content == ""


def test_several_processes_are_refused(alignkit_tiny_policy: Policy, tmp_path: Path) -> None:
    from alignkit_lm_eval import benchmark

    stage = RecordingStage(tmp_path, world=2)

    with pytest.raises(RecipeError) as raised:
        run_method(benchmark, {"tasks": ["tiny_choice"]}, stage, policies=(alignkit_tiny_policy,))

    assert str(raised.value) == "stage 'stage': benchmark runs in one process; run it without --on"
