"""Data sets on the hub of which only some rows are asked for; a server on this machine speaks as the hub does."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = 100_000
TRAIN = "".join(json.dumps({"prompt": f"q{n}", "completion": " yes" * 200}) + "\n" for n in range(ROWS)).encode()
TEST = "".join(json.dumps({"prompt": f"t{n}", "completion": " no"}) + "\n" for n in range(50)).encode()
FILES = {"train.jsonl": TRAIN, "test.jsonl": TEST}


class Hub(ThreadingHTTPServer):
    """A hub with one data set, which counts what it gave of its files."""

    given = 0
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body if self.command != "HEAD" else b"")
        except OSError:
            self.close_connection = True  # the reader has enough

    def do_GET(self) -> None:
        self.server.asked += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            self.file(path.partition(f"/resolve/{COMMIT}/")[2])
        elif "/tree/" in path or "/paths-info/" in path:
            found = [{"type": "file", "path": n, "size": len(b), "oid": COMMIT} for n, b in FILES.items()]
            self.reply(200, json.dumps(found).encode())
        elif path.startswith("/api/datasets/me/rows"):
            facts = {"id": "me/rows", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            self.reply(200, json.dumps(facts).encode())
        else:
            self.reply(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def file(self, name: str) -> None:
        if name not in FILES:
            self.reply(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        body, facts = FILES[name], {"ETag": '"e"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            self.reply(200, headers={**facts, "Content-Length": str(len(body))})
            return
        first, _, last = self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")
        part = body[int(first) : int(last or len(body)) + 1]
        self.server.given += len(part)
        place = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
        self.reply(206, part, {**facts, "Content-Range": place})


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


Check = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def check(tmp_path: Path, hub: Hub) -> Check:
    """Check a recipe that trains on the hub's rows, read as the options say; nothing is in a cache yet."""

    def run(*options: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
        lines = [
            "[sources.base]",
            'policy = "builtin:tiny"',
            "[sources.rows]",
            'demonstrations = "hf:me/rows"',
            *options,
        ]
        (tmp_path / "r.toml").write_text("\n".join([*lines, "[stage.sft]"]) + "\n")
        command = [sys.executable, "-m", "alignkit", "check", "r.toml", "--rows-only", "--json"]
        where = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
        }
        return subprocess.run(
            [*command, *(["--offline"] if offline else [])],
            cwd=tmp_path,
            env={**os.environ, **where, "ALIGNKIT_PLUGINS": ""},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def sources(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["sources"]


def test_of_a_data_set_on_the_hub_only_the_rows_that_are_asked_for_are_read_and_once(
    tmp_path: Path, check: Check, hub: Hub
) -> None:
    (found,) = sources(check("rows = 200"))
    given, asked = hub.given, hub.asked
    (again,) = sources(check("rows = 200", offline=True))

    assert found["rows"] + found["held_out"] == 200
    assert again == found
    assert hub.asked == asked
    assert given < len(TRAIN) / 2
    assert json.loads((tmp_path / "r.lock").read_text()) == {"hub": {"hf:me/rows": COMMIT}}


def test_a_slice_and_a_split_of_its_own_to_measure_on_are_read(tmp_path: Path, check: Check) -> None:
    (found,) = sources(check('split = "train[10:110]"', 'held_out = "test[:20]"'))

    assert (found["rows"], found["held_out"]) == (100, 20)
    (written,) = (tmp_path / "runs" / "sources").glob("rows-*/0-train.jsonl")
    assert json.loads(written.read_text().splitlines()[0])["prompt"] == "q10"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (['split = "trian[:10]"'], "source 'rows' cannot be fetched ("),
        (['split = "test[100:200]"'], "source 'rows': the split 'test' has no such rows; widen its slice"),
    ],
)
def test_rows_that_the_hub_does_not_have_are_refused(
    tmp_path: Path, check: Check, options: list[str], problem: str
) -> None:
    done = check(*options)

    assert done.returncode == 65
    assert done.stderr.splitlines()[-1].startswith(f"error: hf:me/rows: {problem}")
    assert not list((tmp_path / "runs" / "sources").glob("rows-????????"))
