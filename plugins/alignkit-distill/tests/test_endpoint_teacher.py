"""A teacher behind an endpoint: it teaches what the same model beside the policy would, or says why it cannot."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from alignkit_distill.distill import DistillSettings, distill, unfit

from alignkit import Judge, RecipeError, StageError
from alignkit.kit import load_policy
from alignkit.testing import RecordingStage, run_method, same_weights
from alignkit.testing.examples import write_inputs, write_tiny_policy

pytest.importorskip("alignkit_rlaif", reason="its judges are the endpoints")

SETTINGS = {
    "updates": 2,
    "batch": 8,
    "minibatches": 2,
    "learning_rate": 1e-2,
    "generation": {"max_new_tokens": 4},
    "precision": "fp32",
    "measured": 4,
    "top_k": 5,
}


@contextmanager
def serving(answer):
    """Serve `answer`, from a request to a status and a reply, on a free port; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, value = answer(asked, self.path)
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    host = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{host.server_address[1]}/v1"
    finally:
        host.shutdown()
        thread.join()
        host.server_close()


def reading(policy):
    """Return what answers as vLLM does where `prompt_logprobs` is asked for."""
    model, tokenizer = load_policy(policy, trainable=False, precision="fp32")
    lock = threading.Lock()

    def answer(asked, path):
        assert path == "/v1/completions"
        with lock, torch.no_grad():
            said = model(torch.tensor([asked["prompt"]])).logits[0].log_softmax(dim=-1)
        places = [None]
        for before, token in zip(said, asked["prompt"][1:], strict=False):
            likeliest = before.topk(asked["prompt_logprobs"]).indices.tolist()
            places.append(
                {
                    str(one): {"logprob": float(before[one]), "decoded_token": tokenizer.decode([one])}
                    for one in {*likeliest, token}
                }
            )
        return 200, {"choices": [{"text": "", "prompt_logprobs": places}]}

    return answer


def endpoint(url, folder, address="openai:teacher", **more):
    options = {"url": url, "limits": {"patience": 0.2, "pause": 0.05}, **more}
    return Judge(name="far", fingerprint="0", path=folder, address=address, options=options)


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(distill, tmp_path / "inputs", {"teacher": write_tiny_policy(tmp_path / "teacher", seed=5)})


def ran(folder, inputs, **settings):
    stage = RecordingStage(folder)
    return run_method(distill, {**SETTINGS, **settings}, stage, **inputs), stage


@pytest.mark.parametrize("settings", [{}, {"loss": "policy-gradient", "top_k": None}], ids=["jsd", "policy-gradient"])
def test_it_teaches_what_the_same_model_teaches_beside_the_policy(tmp_path, inputs, settings) -> None:
    beside, _ = ran(tmp_path / "beside", inputs, **settings)

    with serving(reading(inputs["teacher"])) as url:
        far, stage = ran(tmp_path / "far", {**inputs, "teacher": endpoint(url, tmp_path)}, **settings)

    assert same_weights(beside, far, 1e-4)
    assert stage.results["agreement"][1] is not None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda asked, path: (401, {"error": {"message": "no"}}), "the teacher refuses (status 401: no"),
        (lambda asked, path: (500, {}), "the teacher does not answer (status 500"),
        (
            lambda asked, path: (200, {"choices": [{"text": "hi"}]}),
            "the teacher does not tell the log-probabilities of given tokens",
        ),
        (
            lambda asked, path: (
                200,
                {"choices": [{"prompt_logprobs": [None, *({str(t): {"logprob": 0}} for t in asked["prompt"][1:])]}]},
            ),
            "the teacher tells of fewer than 5 tokens at a place",
        ),
        (
            lambda asked, path: (
                200,
                {
                    "choices": [
                        {
                            "prompt_logprobs": [
                                None,
                                *({str(t): {"logprob": 0, "decoded_token": "?!"}} for t in asked["prompt"][1:]),
                            ]
                        }
                    ]
                },
            ),
            "the teacher reads other tokens than the policy",
        ),
    ],
    ids=["refused", "broken", "no logprobs", "too few", "other tokens"],
)
def test_an_endpoint_that_cannot_teach_ends_the_stage(tmp_path, inputs, answer, message: str) -> None:
    with serving(answer) as url, pytest.raises(StageError) as ended:
        ran(tmp_path / "stage", {**inputs, "teacher": endpoint(url, tmp_path)})

    assert ended.value.problem.startswith(message)
    assert ended.value.where == "sources.far"


def test_a_judge_of_another_kind_is_refused(tmp_path, inputs) -> None:
    with pytest.raises(RecipeError) as refused:
        ran(tmp_path / "stage", {**inputs, "teacher": endpoint("http://x/v1", tmp_path, "rule:reviews-gold")})

    assert refused.value.problem == "a judge of the scheme 'rule' tells no log-probabilities of given tokens"


def test_a_key_that_is_not_there_is_asked_for(tmp_path, inputs, monkeypatch) -> None:
    monkeypatch.delenv("TEACHERS_KEY", raising=False)
    with pytest.raises(RecipeError) as refused:
        ran(tmp_path / "stage", {**inputs, "teacher": endpoint("http://x/v1", tmp_path, key_env="TEACHERS_KEY")})

    assert refused.value.problem == "the environment variable TEACHERS_KEY is not set"


def test_a_key_that_the_endpoint_repeats_stands_in_no_message(tmp_path, inputs, monkeypatch) -> None:
    monkeypatch.setenv("TEACHERS_KEY", "secret-7")
    with (
        serving(lambda asked, path: (401, {"error": {"message": "secret-7 is unknown"}})) as url,
        pytest.raises(StageError) as ended,
    ):
        ran(tmp_path / "stage", {**inputs, "teacher": endpoint(url, tmp_path, key_env="TEACHERS_KEY")})

    assert ended.value.problem == "the teacher refuses (status 401: *** is unknown)"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"on_policy": 0.5}, "an endpoint gives no answers to learn from"),
        ({"generation": {"temperature": 2.0}}, "an endpoint tells log-probabilities at the temperature 1 alone"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused_by_the_plan(settings, problem: str) -> None:
    assert [said for said, _ in unfit(DistillSettings.model_validate(settings), {"teacher": [Judge]})] == [problem]
