"""Fingerprints: change one input after the other and the stage is another; change anything else and it is the same."""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from planning import CHAIN, METHODS, Desk, make_desk, write_model, write_rows

from alignkit.plugins import Origin
from alignkit.recipe import fingerprint
from alignkit.recipe.fingerprint import code_identity, stage_fingerprint, stage_seed
from alignkit.store.file_hashes import FileHashes

ROWS = [{"prompt": "b?", "completion": "b."}]
PLAIN = f"{CHAIN}lift.rate = 1e-3\n"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("ALIGNKIT_PLUGINS", "")
    return make_desk(tmp_path)


def prints(desk: Desk, text: str = PLAIN, **more: object) -> dict[str, str | None]:
    return {stage.name: stage.fingerprint for stage in desk.plan(text, **more).stages}  # type: ignore[arg-type]


def changed(desk: Desk, change: Callable[[Desk], str | None]) -> set[str]:
    """Plan, change something, plan again: which stages are others now?"""
    before = prints(desk)
    after = prints(desk, change(desk) or PLAIN)
    return {name for name, value in before.items() if after[name] != value}


def edit(old: str, new: str) -> Callable[[Desk], str]:
    assert old in PLAIN
    return lambda desk: PLAIN.replace(old, new)


def rewrite(desk: Desk) -> None:
    write_rows(desk.folder / "demos.jsonl", ROWS)


def rewrite_model(desk: Desk) -> None:
    (desk.folder / "model" / "model.safetensors").write_bytes(b"others!")


def rewrite_config(desk: Desk) -> None:
    (desk.folder / "model" / "config.json").write_text('{"model_type": "gpt2"}')


def rewrite_plugin(desk: Desk) -> None:
    desk.plugin.write_text(f"{METHODS}\n# another line\n")


ALL = {"first", "judged", "align"}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        (edit("rate = 1e-3", "rate = 2e-3"), {"align"}),
        (edit("lift.rate = 1e-3", "max_length = 64"), {"align"}),
        (edit("[sources]", "[defaults]\nmax_length = 9\n[sources]"), {"first", "align", "judged"}),
        (edit("[sources]", "seed = 4\n[sources]"), ALL),
        (edit("[stage.align]", "[stage.align]\nseed = 4"), {"align"}),
        (edit('method = "lift"', 'method = "swap"'), {"align"}),
        (edit('method = "lift"', 'method = "lift"\ninputs.policy = "base"'), {"align"}),
        (edit('"demos.jsonl"', '"demos.jsonl", held_out = 0.1'), ALL),
        (edit('"demos.jsonl"', '"demos.jsonl", rows = 1'), ALL),
        (edit('"demos.jsonl"', '"demos.jsonl", split = "[:1]"'), ALL),
        (edit('"demos.jsonl"', '"demos.jsonl", keep = ["prompt"]'), ALL),
        (edit('"demos.jsonl"', '"demos.jsonl", columns = { prompt = "completion" }'), ALL),
        (edit('"demos.jsonl"', '["demos.jsonl", "demos.jsonl"]'), ALL),
        (edit('"demos.jsonl"', '"demos.jsonl", held_out = "demos.jsonl"'), ALL),
        (edit('"model"', '"model", load = "4bit"'), ALL),
        (rewrite, ALL),
        (rewrite_model, ALL),
        (rewrite_config, ALL),
        (rewrite_plugin, ALL),
    ],
)
def test_whatever_can_change_a_result_changes_the_stages_that_it_reaches(
    desk: Desk, change: Callable[[Desk], str | None], stages: set[str]
) -> None:
    assert changed(desk, change) == stages


def move_demos(desk: Desk) -> str:
    (desk.folder / "sub").mkdir()
    (desk.folder / "demos.jsonl").rename(desk.folder / "sub" / "moved.jsonl")
    return PLAIN.replace("demos.jsonl", "sub/moved.jsonl")


def rename_source(desk: Desk) -> str:
    return PLAIN.replace("demos =", "examples =")


def touch(desk: Desk) -> None:
    os.utime(desk.folder / "demos.jsonl", (1, 1))


def move_model(desk: Desk) -> str:
    (desk.folder / "model").rename(desk.folder / "other-model")
    (desk.folder / "other-model" / "README.md").write_text("about it")
    return PLAIN.replace('"model"', '"other-model"')


@pytest.mark.parametrize(
    "change",
    [
        move_demos,
        move_model,
        rename_source,
        touch,
        edit("[sources]", "# a remark\n\nname = 'other'\n[sources]"),
        edit("lift.rate = 1e-3", "lift.rate = 0.001\nlift.batch = 8"),
        edit("lift.rate = 1e-3", "lift.rate = 1e-3\nswap.beta = 3\ngates.kl.max = 3"),
        edit('method = "tune"', 'method = "tune"\nlora = false'),
        edit("[stage.align]", "[stage.align]\nlift.lora = false"),
        edit('method = "tune"', 'method = "tune"\ninputs.demos = ["demos"]'),
        edit("[sources]", "[sources.more]\ntext = 'x.txt'\n[sources]"),
        lambda _: f"{PLAIN}[stage.align-more]\nmethod = 'swap'\n",
    ],
)
def test_what_cannot_change_a_result_changes_nothing(desk: Desk, change: Callable[[Desk], str | None]) -> None:
    (desk.folder / "x.txt").write_text("text")

    assert changed(desk, change) == set()


def test_a_fingerprint_waits_for_its_inputs() -> None:
    assert stage_fingerprint("m", "c", {}, 1, {"policy": ["a", None]}) is None


def test_the_order_of_settings_and_roles_does_not_count_and_that_of_sources_does() -> None:
    one = stage_fingerprint("m", "c", {"a": 1, "b": 2}, 1, {"p": ["x"], "q": ["y", "z"]})

    assert one == stage_fingerprint("m", "c", {"b": 2, "a": 1}, 1, {"q": ["y", "z"], "p": ["x"]})
    assert one != stage_fingerprint("m", "c", {"a": 1, "b": 2}, 1, {"p": ["x"], "q": ["z", "y"]})


def test_each_bound_belongs_to_the_cost_at_its_place() -> None:
    bounds = [("harm", {"max": 0.1}), ("length", {"max": 40})]

    one, other = (stage_fingerprint("m", "c", {}, 1, {"costs": ["x", "y"]}, some) for some in (bounds, bounds[::-1]))

    assert one != other


def test_a_stage_has_its_seed_from_the_recipe_and_its_name() -> None:
    assert stage_seed(17, "align") == stage_seed(17, "align") < 2**32
    assert len({stage_seed(17, "align"), stage_seed(18, "align"), stage_seed(17, "aligm")}) == 3


# The cache of hashes


def old_file(path: Path, content: bytes, age: int = 60) -> Path:
    path.write_bytes(content)
    moment = time.time() - age
    os.utime(path, (moment, moment))
    return path


def test_hashes_are_remembered(tmp_path: Path) -> None:
    file, cache = old_file(tmp_path / "file", b"one"), tmp_path / "cache" / "hashes.json"
    hashes = FileHashes(cache)
    first = hashes.of(file)
    hashes.save()
    known = json.loads(cache.read_text())
    known[str(file)][-1] = "remembered"
    cache.write_text(json.dumps(known))

    assert (len(first), FileHashes(cache).of(file)) == (64, "remembered")


@pytest.mark.parametrize("age", [59, 61])
def test_a_changed_file_is_hashed_again(tmp_path: Path, age: int) -> None:
    file = old_file(tmp_path / "file", b"one")
    hashes = FileHashes(tmp_path / "hashes.json")
    first = hashes.of(file)

    assert hashes.of(old_file(file, b"two", age)) != first


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    hashes = FileHashes(tmp_path / "hashes.json")

    hashes.of(tmp_path / "file")

    assert hashes.known == {}


@pytest.mark.parametrize("content", ["", "[]", "3", '{"FILE": 3}', '{"FILE": []}', '{"FILE": [1]}'])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, content: str) -> None:
    file = old_file(tmp_path / "file", b"one")
    (tmp_path / "hashes.json").write_text(content.replace("FILE", str(file)))

    assert FileHashes(tmp_path / "hashes.json").of(file) == FileHashes(tmp_path / "none.json").of(file)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("")
    hashes = FileHashes(tmp_path / "in-the-way" / "hashes.json")

    hashes.of(old_file(tmp_path / "file", b"one"))
    hashes.save()

    assert (tmp_path / "in-the-way").read_text() == ""


def test_every_source_of_shared_code_is_there() -> None:
    package = Path(fingerprint.__file__).parent.parent

    assert [pattern for pattern in fingerprint.SHARED_SOURCES if not list(package.glob(pattern))] == []


def test_models_are_told_apart_by_content(desk: Desk) -> None:
    write_model(desk.folder / "twin")
    write_model(desk.folder / "other", b"other weights")
    text = f"{PLAIN}[sources.twin]\npolicy = 'twin'\n[sources.other]\npolicy = 'other'\n"
    text = text.replace('method = "tune"', 'method = "tune"\ninputs.policy = "base"')

    sources = desk.plan(text).sources

    assert sources["base"].fingerprint == sources["twin"].fingerprint != sources["other"].fingerprint


def installed(folder: Path, name: str, facts: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package of two modules and a text, whose `.dist-info` tells where it came from."""
    information = folder / f"{name}-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (information / "direct_url.json").write_text(facts)
    package = folder / name
    (package / "texts.py").mkdir(parents=True)  # a folder, whatever its name ends in
    for file in ("__init__.py", "texts.py/inner.py", "texts.py/words.txt", "notes.md"):
        (package / file).write_text("")
    monkeypatch.syspath_prepend(folder)
    imported(name, monkeypatch)
    return package


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Import a module until the test ends."""
    module = importlib.import_module(name)
    del sys.modules[name]
    monkeypatch.setitem(sys.modules, name, module)


def test_a_released_package_counts_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = installed(tmp_path, "meadow", '{"url": "file:///x", "dir_info": {}}', monkeypatch)
    before = code_identity(Origin("meadow", "meadow", "1.2"), "meadow.kind")
    (package / "__init__.py").write_text("# another line")

    assert code_identity(Origin("meadow", "meadow", "1.2"), "meadow.kind") == before == "meadow 1.2"
    assert code_identity(Origin("nowhere", "nowhere", "0.1"), "meadow") == "nowhere 0.1"


@pytest.mark.parametrize(
    ("file", "counts"),
    [("__init__.py", True), ("texts.py/inner.py", True), ("texts.py/words.txt", True), ("notes.md", False)],
)
def test_a_checkout_counts_by_all_its_code_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, counts: bool
) -> None:
    package = installed(tmp_path, "pasture", '{"url": "file:///x", "dir_info": {"editable": true}}', monkeypatch)
    origin = Origin("pasture", "pasture", "1.2")
    before = code_identity(origin, "pasture.inner")
    (package / file).write_text("# another line")

    after = code_identity(origin, "pasture.inner")

    assert (before != after) is counts
    assert before.startswith("pasture ")


def test_a_module_that_stands_alone_counts_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "orchard", '{"url": "file:///x", "dir_info": {"editable": true}}', monkeypatch)
    for name in ("lone_wolf", "lone_fox"):
        (tmp_path / f"{name}.py").write_text(f"# {name}")
        imported(name, monkeypatch)

    wolf, again, fox = (
        code_identity(Origin(name, "orchard", "1.2"), name) for name in ("lone_wolf", "lone_wolf", "lone_fox")
    )

    assert wolf == again != fox
