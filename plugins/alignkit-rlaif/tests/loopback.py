"""A server on this machine that speaks as OpenAI's chat completions do, with faults if so asked."""

import hashlib
import json
import math
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("429", "500", "timeout", "reset", "slow", "truncated", "schema", "html", "cut")
HANGS = 0.6
"""Seconds for which a hanging request hangs; clients wait for less."""


@dataclass
class Server:
    """What it was asked, and how it answers."""

    answer: Callable[[dict[str, Any]], Any]
    """Makes the reply, a JSON value, or a status with it."""
    faults: float = 0.0
    """Share of the requests that meet a fault, by what they say and how often they said it."""
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Requests that were answered rightly."""
    headers: list[dict[str, str]] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)
    """Faults."""
    attempts: Counter[str] = field(default_factory=Counter)

    def fault(self, body: bytes) -> str | None:
        """Choose a fault, the same one for the same request and attempt."""
        key = hashlib.sha256(body).hexdigest()
        self.attempts[key] += 1
        drawn = int(hashlib.sha256(f"{key} {self.attempts[key]}".encode()).hexdigest()[:8], 16) / 2**32
        return FAULTS[int(drawn / self.faults * len(FAULTS))] if drawn < self.faults else None


def says(text: str, weights: dict[str, float] | None = None, tokens: int = 10) -> dict[str, Any]:
    """Make a chat completion, with probabilities of its first token where given."""
    top = [{"token": token, "logprob": math.log(share)} for token, share in (weights or {}).items()]
    told = {"logprobs": {"content": [{"token": text, "logprob": 0.0, "top_logprobs": top}]}} if weights else {}
    return {"choices": [{"message": {"role": "assistant", "content": text}, **told}], "usage": {"total_tokens": tokens}}


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Any], faults: float = 0.0) -> Iterator[Server]:
    """Serve on a free port."""
    server = Server(answer, faults)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the name is http.server's
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fault = server.fault(body) if server.faults else None
            if fault:
                server.met[fault] += 1
                self.fail(fault)
                return
            server.headers.append(dict(self.headers))
            reply = server.answer(json.loads(body))
            status, value = reply if isinstance(reply, tuple) else (200, reply)
            if status == 200:
                server.asked.append(json.loads(body))
            self.send(status, json.dumps(value).encode())

        def send(self, status: int, data: bytes, more: dict[str, str] | None = None, missing: int = 0) -> None:
            self.send_response(status)
            for name, value in {
                "Content-Length": str(len(data) + missing),
                "Connection": "close",
                **(more or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def fail(self, fault: str) -> None:
            whole = json.dumps(says("A")).encode()
            if fault == "429":
                self.send(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.01"})
            elif fault == "500":
                self.send(500, b"<html>oops</html>")
            elif fault == "timeout":
                time.sleep(HANGS)
                self.close_connection = True
            elif fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            elif fault == "slow":
                self.drip(whole)
            elif fault == "truncated":
                self.send(200, whole[: len(whole) // 2])
            elif fault == "schema":
                self.send(200, b'{"choices": []}')
            elif fault == "html":
                self.send(200, b"<html>Welcome</html>")
            else:
                self.send(200, whole[: len(whole) // 2], missing=len(whole) - len(whole) // 2)
                self.close_connection = True

        def drip(self, whole: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            for place in range(0, len(whole), 4):
                self.wfile.write(whole[place : place + 4])
                self.wfile.flush()
                time.sleep(0.1)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is http.server's
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    host = Quiet(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{host.server_address[1]}/v1"
    thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        host.shutdown()
        thread.join()
        host.server_close()
