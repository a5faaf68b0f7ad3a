"""Which policy a name means, and how it is asked."""

from pathlib import Path

import pytest

from alignkit import StageError
from alignkit.errors import RecipeError
from alignkit.store.durable import read_json
from alignkit.store.runs import KeptRun
from alignkit.use.run_policy import find_policy, form_of_stage


def test_a_run_alone_means_the_last_policy_that_it_has_made(small_run: KeptRun) -> None:
    found = find_policy("small", small_run.runs)

    assert (found.stage.name, found.form, found.name) == ("layered", "plain", f"{small_run.id}:layered")


def test_a_policy_is_asked_as_its_rows_were(small_run: KeptRun) -> None:
    forms = {name: find_policy(f"small:{name}", small_run.runs).form for name in ("plain", "chatty", "thin")}

    assert forms == {"plain": "plain", "chatty": "chat", "thin": "plain"}
    folder = small_run.stage("chatty").folder
    assert folder is not None
    assert read_json(folder / "stage.json")["form"] == "chat"


def test_of_a_stage_that_does_not_say_what_was_found_in_its_sources_tells(small_run: KeptRun) -> None:
    for name, form in (("plain", "plain"), ("chatty", "chat")):
        stage = KeptRun(small_run.folder).stage(name)
        stage.__dict__["facts"] = {}

        assert form_of_stage(small_run, stage) == form


MAKES = "of this run makes a policy"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "small:reward",
            f"no stage 'reward' {MAKES}; those that do are plain, chatty, thin, layered",
        ),
        ("small:thinn", f"no stage 'thinn' {MAKES}; did you mean 'thin'?"),
    ],
)
def test_a_stage_that_makes_no_policy_is_refused(small_run: KeptRun, name: str, said: str) -> None:
    with pytest.raises(StageError) as raised:
        find_policy(name, small_run.runs)

    assert str(raised.value) == f"{small_run.id}: {said}"


def test_where_no_such_run_is_kept_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        find_policy("small:plain", tmp_path)

    assert str(raised.value) == f"small: no run is called so; `alignkit runs` lists those in {tmp_path}"
