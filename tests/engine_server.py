"""A server on this machine that answers as vLLM's does, by a real model, with faults if so asked.

python tests/engine_server.py serve FOLDER --port PORT
"""

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from alignkit.training.adapters import worn

HANGS = 0.4
"""Seconds for which a request hangs that is to."""


@dataclass
class EngineServer:
    """What it holds, what it was asked, and how it fails."""

    folder: Path
    """Of the model that it holds at first."""
    limit: int = 512
    slow: float = 0.0
    """Seconds that every answer takes besides."""
    deaf: bool = False
    """It confirms new weights, and does not take them."""
    faults: list[str] = field(default_factory=list)
    """What the next requests for an answer meet."""
    url: str = ""
    version: str = "default"
    asked: list[dict[str, Any]] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    """When each answer was begun and ended."""

    def __post_init__(self) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        head = self.model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.clone())  # it looks for every weight by its own name
        self.adapters: dict[str, PeftModel] = {}
        self.lock = threading.Lock()

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return the status and the reply to a request."""
        if path == "/v1/models":
            return 200, {"data": [{"id": "policy", "max_model_len": self.limit}]}
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/update_weight_version":
            self.version = body["new_version"]
        if path == "/collective_rpc" and not self.deaf:
            for file in Path(body["kwargs"]["weights_path"]).glob("*.safetensors"):
                self.model.load_state_dict(load_file(file), strict=False)
        if path == "/v1/load_lora_adapter":
            base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
            self.adapters[body["lora_name"]] = worn(base, Path(body["lora_path"])).eval()
            return 200, b"Success"
        if path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return 200, b"Success"
        return self.answer(body) if path == "/v1/completions" else (200, {})

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        model = self.model if body["model"] == "policy" else self.adapters.get(body["model"])
        if model is None:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        began = time.monotonic()
        time.sleep(self.slow)
        with self.lock:
            tokens, logprobs = drawn(model, body)
            self.asked.append(body)
        self.spans.append((began, time.monotonic()))
        choice = {"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}}
        return 200, {"choices": [choice]}


@torch.no_grad()
def drawn(model: Any, body: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Draw an answer by the request's seed."""
    chance, tokens, logprobs = torch.Generator().manual_seed(body["seed"]), list[int](), list[float]()
    while len(tokens) < body["max_tokens"] and not (tokens and tokens[-1] in body["stop_token_ids"]):
        logits = model(input_ids=torch.tensor([[*body["prompt"], *tokens]])).logits[0, -1] / (body["temperature"] or 1)
        token = int(torch.multinomial(logits.softmax(-1), 1, generator=chance)) if body["temperature"] else None
        tokens.append(int(logits.argmax()) if token is None else token)
        logprobs.append(float(logits.log_softmax(-1)[tokens[-1]]))
    return tokens, logprobs


@contextmanager
def engine_server(folder: Path, port: int = 0, **how: Any) -> Iterator[EngineServer]:
    """Serve the model of a folder, on a free port where none is given."""
    engine = EngineServer(folder, **how)
    server = ThreadingHTTPServer(("127.0.0.1", port), handler_of(engine))
    server.daemon_threads = True
    engine.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        server.shutdown()
        server.server_close()


def handler_of(engine: EngineServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # its base calls it so
            self.answered({})

        def do_POST(self) -> None:
            self.answered(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answered(self, body: dict[str, Any]) -> None:
            path = self.path.partition("?")[0]
            fault = engine.faults.pop(0) if path == "/v1/completions" and engine.faults else ""
            if fault == "timeout":
                time.sleep(HANGS)
            if fault in ("timeout", "reset"):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            status, said = (int(fault), {"error": {"message": "busy"}}) if fault.isdigit() else engine.reply(path, body)
            content = said if isinstance(said, bytes) else json.dumps(said).encode()
            content = content[: len(content) // 2] if fault == "truncated" else content
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    return Handler


if __name__ == "__main__":
    with engine_server(Path(sys.argv[2]), int(sys.argv[sys.argv.index("--port") + 1])):
        threading.Event().wait()
