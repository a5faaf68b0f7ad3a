"""The example plugins are what their page says: short, installable, and right."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from alignkit.contract.events import Metrics, Result, StageFailed, StageFinished, Warned
from alignkit.contract.judges import Question
from alignkit.contract.reward_function import Answer
from alignkit.errors import DataError
from alignkit.methods.grpo import grpo
from alignkit.testing import RecordingStage, conformance, run_method, write_inputs

EXAMPLES = Path(__file__).parents[2] / "plugins" / "examples"
PACKAGES = sorted(path.parent for path in EXAMPLES.glob("*/pyproject.toml"))


ONLINE = {
    "learning_rate": 1e-3,
    "updates": 2,
    "batch": 8,
    "answers": 4,
    "epochs": 2,
    "minibatches": 2,
    "precision": "fp32",
    "measured": 4,
    "generation": {"max_new_tokens": 5, "unfinished": "subtract", "penalty": 0.0},
}
RECIPE = """
result = ["best", "align"]
[sources]
start = { policy = "builtin:tiny" }
sums  = { prompts = "builtin:reviews" }
pairs = { preferences = "builtin:reviews" }
right = { reward = "function:arithmetic" }
short = { judge = "rule:concise" }
[stage.best]
method = "best-answers"
[stage.align]
method = "simper"
"""


def module(name: str) -> ModuleType:
    (file,) = EXAMPLES.glob(f"*/{name}.py")
    spec = importlib.util.spec_from_file_location(name, file)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


simper = module("alignkit_simper").simper
dr_grpo = module("alignkit_dr_grpo").dr_grpo
best_answers = module("alignkit_best_answers").best_answers
arithmetic = module("alignkit_arithmetic")
concise = module("alignkit_concise")
webhook = module("alignkit_webhook")


class TestSimPER(
    conformance(simper, {"learning_rate": 1e-2, "batch": 16, "precision": "fp32"}, effects=["lora.rank=4"])
):
    def test_it_is_found_without_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", str(EXAMPLES / "alignkit-simper"))
        super().test_it_is_found_without_torch()


class TestDrGRPO(
    conformance(dr_grpo, ONLINE, effects=["kl.coef=1.0", "answers=2", "clip=0.001", "minibatches=1", "lora.rank=4"])
):
    def test_it_is_found_without_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", str(EXAMPLES / "alignkit-dr-grpo"))
        super().test_it_is_found_without_torch()


def test_dr_grpo_is_grpo_with_its_settings(tmp_path: Path) -> None:
    inputs, pull = write_inputs(grpo, tmp_path), {"coef": 0.1}
    theirs = run_method(dr_grpo, ONLINE | {"kl": pull}, RecordingStage(tmp_path / "a"), **inputs)
    plain = {"scale": "none", "average": "fixed", "kl": pull | {"corrected": False}}
    ours = run_method(grpo, ONLINE | plain, RecordingStage(tmp_path / "b"), **inputs)

    for one, other in zip(weights_of(theirs.path), weights_of(ours.path), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def weights_of(folder: Path) -> list[torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return [tensors[name] for name in sorted(tensors)]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_an_example_is_short(package: Path) -> None:
    (file,) = package.glob("alignkit_*.py")

    assert len(file.read_text("utf-8").splitlines()) <= 60


def test_installed_examples_are_offered(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path), *map(str, PACKAGES)], check=True)

    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE, "utf-8")
    told = subprocess.run(
        [sys.executable, "-m", "alignkit", "plan", str(recipe), "--runs", str(tmp_path / "runs")],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.returncode == 0, told.stderr
    assert "best   best-answers  will run  Demonstrations  policy=start prompts=sums reward=right" in told.stdout
    assert "align  simper        will run  Policy          policy=start pairs=pairs" in told.stdout


def test_best_answers_keep_the_best_answer(tmp_path: Path) -> None:
    stage = RecordingStage(tmp_path / "stage")

    made = run_method(best_answers, {"answers": 4, "max_new_tokens": 4}, stage, **write_inputs(best_answers, tmp_path))

    assert len([*made.train(), *made.held_out()]) == 48
    assert all(figures["best"] >= figures["mean"] for _, _, figures in stage.logs)


@pytest.mark.parametrize(
    ("text", "finished", "score"),
    [
        ("so it is 1,200.", True, 1.0),
        ("#### 1200", True, 1.0),
        ("1200, or rather 1300", True, 0.0),
        ("no idea", True, 0.0),
        ("it is 1200", False, 0.0),
    ],
)
def test_arithmetic_looks_at_the_last_number(text: str, finished: bool, score: float) -> None:
    answers = [Answer("600 + 600?", text, finished, {"result": "1200"})]

    assert arithmetic.arithmetic(answers, arithmetic.ArithmeticSettings()) == [score]


def test_arithmetic_says_which_column_is_missing() -> None:
    with pytest.raises(DataError) as refusal:
        arithmetic.arithmetic([Answer("1 + 1?", "2", True, {})], arithmetic.ArithmeticSettings())

    assert str(refusal.value) == "prompts have no column 'result'; keep = [\"result\"]"


@pytest.mark.parametrize(
    ("first", "second", "chance"),
    [
        (("a b", True), ("c d", True), 0.5),
        (("a", True), ("b c", True), 0.935),
        (("b c", True), ("a", True), 0.065),
        (("a", False), ("b c", True), 0.0),
        (("", True), ("", True), 0.5),
    ],
)
def test_concise_prefers_what_is_short_and_finished(
    first: tuple[str, bool], second: tuple[str, bool], chance: float
) -> None:
    question = Question(Answer("Why?", *first), Answer("Why?", *second))

    assert concise.concise([question], concise.ConciseSettings()) == [pytest.approx(chance, abs=1e-3)]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a webhook of this machine was told."""
    texts: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("ALIGNKIT_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hook")
        yield texts
        server.shutdown()


def test_a_webhook_is_told_how_stages_end(received: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    results = (Result("align", "reward", 0.25, 0.5), Result("align", "kl", None, 1.0))
    events = (
        Metrics("align", 1, 2, {"loss": 0.5}),
        Warned("align", "KL is high", "raise kl.coef"),
        Warned("align", "KL is high", "raise kl.coef", replayed=True),
        StageFinished("sft", "sft", "Policy", "there", 1.0, reused=True),
        StageFinished("align", "ppo", "Policy", "there", 9.0, results=results),
        StageFailed("scores", "out of memory", "take less", 1),
    )
    for event in events:
        webhook.alignkit_event(event)
    monkeypatch.delenv("ALIGNKIT_WEBHOOK")
    webhook.alignkit_event(events[-1])

    assert received == [
        "align warns: KL is high; raise kl.coef",
        "align (ppo) is finished\nreward: 0.25 -> 0.5\nkl: 1",
        "scores failed: out of memory; take less",
    ]
