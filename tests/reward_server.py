"""A server on this machine that holds a reward model and speaks as vLLM's does, with faults if so asked."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from alignkit.contract.kinds import RewardModel

HANGS = 0.6
"""Seconds for which a hanging request hangs; clients wait for less."""


@dataclass
class Host:
    """What it holds, what goes wrong next, and what it was asked."""

    models: list[dict[str, Any]]
    faults: list[str] = field(default_factory=list)
    """What the next requests meet, the first one first."""
    asked: list[list[int]] = field(default_factory=list)
    url: str = ""


@contextmanager
def holding(reward: RewardModel, name: str, root: str = "") -> Iterator[Host]:
    """Serve a reward model under a name on a free port; the folder that the server tells is its own, or `root`."""
    model = AutoModelForSequenceClassification.from_pretrained(reward.path).eval()
    host = Host([{"id": name, "root": root or str(reward.path), "max_model_len": model.config.max_position_embeddings}])

    @torch.no_grad()
    def classified(body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] != name:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        host.asked.append(body["input"])
        logits = model(torch.tensor([body["input"]])).logits[0]
        shown = logits if body["use_activation"] is False else logits.sigmoid()
        return 200, {"data": [{"index": 0, "probs": shown.tolist(), "num_classes": len(logits)}]}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # the name is http.server's
            self.send(200, json.dumps({"data": host.models}).encode())

        def do_POST(self) -> None:  # so is this
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = host.faults.pop(0) if host.faults else ""
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            elif fault == "slow":
                time.sleep(HANGS)
                self.close_connection = True
            elif fault:
                self.send(int(fault[:3]), fault[4:].encode())
            else:
                status, value = classified(body)
                self.send(status, json.dumps(value).encode())

        def send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is http.server's
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    host.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
