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

from alignkit.data.hubsets import HubSet, rows_of_split

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = 100_000
TRAIN = "".join(json.dumps({"prompt": f"q{n}", "completion": " yes" * 200}) + "\n" for n in range(ROWS)).encode()
TEST = "".join(json.dumps({"prompt": f"t{n}", "completion": " no"}) + "\n" for n in range(50)).encode()
FILES = {"train.jsonl": TRAIN, "test.jsonl": TEST}
CARD = """---
configs:
- config_name: first
  data_files: [{split: train_sft, path: first/train.jsonl}, {split: test_sft, path: first/test.jsonl}]
- config_name: second
  data_files: second/a.jsonl
---
"""
CALLS = [
    {
        "messages": [
            {"role": "user", "content": "where?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": {key: "x"}}}]},
        ],
        "tools": [{"name": name, "parameters": {"properties": {key: {"type": "string"}}}}],
    }
    for name, key in (("look", "thing"), ("weather", "city"))
]
SEVERAL = {
    "README.md": CARD.encode(),
    "first/train.jsonl": TEST,
    "first/test.jsonl": TEST,
    "second/a.jsonl": "".join(json.dumps(row) + "\n" for row in CALLS * 20).encode(),
}


class Hub(ThreadingHTTPServer):
    """A hub with one data set, which counts what it gave of its files."""

    files: Mapping[str, bytes] = FILES
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
            found = [{"type": "file", "path": n, "size": len(b), "oid": COMMIT} for n, b in self.server.files.items()]
            self.reply(200, json.dumps(found).encode())
        elif path.startswith("/api/datasets/me/rows"):
            facts = {"id": "me/rows", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.server.files]}
            self.reply(200, json.dumps(facts).encode())
        else:
            self.reply(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def file(self, name: str) -> None:
        if name not in self.server.files:
            self.reply(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        body, facts = self.server.files[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
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
        (['split = "trian[:10]"'], "it has the splits train, test, and source 'rows' reads 'trian'; write split = "),
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


CONFIGS = "it has the configs first, second, and source 'rows' names "
SPLITS = "it has the splits train_sft, test_sft, and source 'rows' reads "


@pytest.mark.parametrize("limit", [[], pytest.param(["rows = 5"], marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], f'{CONFIGS}none; write config = "first", or another of them'),
        pytest.param(
            ['config = "secnd"'],
            f"{CONFIGS}'secnd'; write config = \"first\", or another of them",
            marks=pytest.mark.slow,
        ),
        (['config = "first"'], f"{SPLITS}'train'; write split = \"train_sft\", or another of them"),
        (
            ['config = "first"', 'split = "train_sft"', 'held_out = "test"'],
            f"{SPLITS}'test'; write held_out = \"test_sft\", or another of them",
        ),
    ],
)
def test_a_name_that_must_be_said_is_asked_for_with_those_there_are(
    tmp_path: Path, check: Check, hub: Hub, options: list[str], problem: str, limit: list[str]
) -> None:
    hub.files = SEVERAL

    done = check(*options, *limit)

    assert (done.returncode, done.stderr.splitlines()[-1]) == (65, f"error: hf:me/rows: {problem}")
    assert not list((tmp_path / "home").glob("hub/**/train.jsonl"))  # it is told before all is fetched
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("limit", [["rows = 40"], pytest.param([], marks=pytest.mark.slow)])
def test_a_config_and_a_split_that_are_named_are_read(tmp_path: Path, check: Check, hub: Hub, limit: list[str]) -> None:
    hub.files = SEVERAL

    (found,) = sources(check('config = "first"', 'split = "train_sft"', 'held_out = "test_sft[:7]"', *limit))

    assert (found["rows"], found["held_out"]) == (40 if limit else 50, 7)


def test_what_a_data_set_cannot_be_read_for_is_told_whole(tmp_path: Path, check: Check, hub: Hub) -> None:
    hub.files = {"rows.py": b"", "notes.md": b"no rows"}

    done = check()

    assert done.returncode == 65
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: hf:me/rows: source 'rows' cannot be fetched (")


def test_a_name_that_is_wrong_once_all_is_fetched_is_refused_with_those_there_are(check: Check, hub: Hub) -> None:
    hub.files = SEVERAL
    sources(check('config = "first"', 'split = "train_sft"'))

    done = check('config = "first"')

    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        65,
        f"error: hf:me/rows: {SPLITS}'train'; write split = \"train_sft\", or another of them",
    )


def test_rows_that_are_taken_of_the_hub_hold_no_fields_of_other_rows(tmp_path: Path, check: Check, hub: Hub) -> None:
    hub.files = SEVERAL

    sources(check('config = "second"', "rows = 40"))

    (written,) = (tmp_path / "runs" / "sources").glob("rows-*/0-train.jsonl")
    assert [json.loads(line) for line in written.read_text().splitlines()][:2] == CALLS


def test_rows_of_a_data_set_that_was_fetched_hold_no_fields_of_other_rows(tmp_path: Path) -> None:
    for name, content in SEVERAL.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)

    rows = rows_of_split(HubSet("rows", "me/rows", str(tmp_path), "second", "train"), 1, 3)

    assert list(rows) == [CALLS[1], CALLS[0]]
