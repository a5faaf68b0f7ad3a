"""What is taken away opens with plain transformers or PEFT, wherever it lies, and answers as before."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.cli import main
from alignkit.data.adapter_folder import base_folder
from alignkit.store.runs import KeptRun
from alignkit.training.speaking import Manner, open_speaker
from alignkit.use.export import push
from alignkit.use.run_policy import policy_of

PROMPTS = ["how was the food", "how was the lake bed", "how"]

Export = Callable[..., Result]


@pytest.fixture
def export(small_run: KeptRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    monkeypatch.chdir(tmp_path)
    more = ("--runs", str(small_run.runs))
    return lambda *words: CliRunner().invoke(main, ["export", *words, *more], prog_name="alignkit")


def moved(folder: str) -> Path:
    """Copy a folder elsewhere, and remove it where it was written."""
    there = Path("elsewhere") / "copy"
    shutil.copytree(folder, there)
    shutil.rmtree(folder)
    return there


def greedy(model: Any, tokenizer: Any, prompt: str) -> str:
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id)
    return str(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def answers(run: KeptRun, stage: str) -> list[str]:
    """Return the greedy answers of a stage's policy where it lies."""
    found, manner = policy_of(run, stage), Manner(max_new_tokens=12, temperature=0)
    speaker = open_speaker(found.policy, found.form)
    prompts = [speaker.asked({"prompt": text}, manner) for text in PROMPTS]
    return [answer.text for answer in speaker.answers(prompts, manner)]


@pytest.mark.parametrize("stage", ["plain", "thin", "layered"], ids=["full", "lora", "lora on a trained base"])
def test_greedy_answers_are_the_same_after_export(small_run: KeptRun, export: Export, stage: str) -> None:
    done = export(f"small:{stage}", "out")

    assert (done.exit_code, done.stdout) == (0, "exported: out\n"), done.stderr
    there = moved("out")
    model, tokenizer = (kind.from_pretrained(there) for kind in (AutoModelForCausalLM, AutoTokenizer))
    expected = answers(small_run, stage)
    assert [greedy(model, tokenizer, prompt) for prompt in PROMPTS] == expected
    base = AutoModelForCausalLM.from_pretrained(
        small_run.runs.parent / str(small_run.plan["sources"]["base"]["address"])
    )
    assert [greedy(base, tokenizer, prompt) for prompt in PROMPTS] != expected
    assert tokenizer.chat_template is None
    assert not (there / "adapter_config.json").exists()
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=there, check=False).returncode == 0


def test_the_chat_template_comes_along_where_it_was_learnt_by(small_run: KeptRun, export: Export) -> None:
    export("small:chatty", "out", "--ollama")

    assert "### Assistant:" in str(AutoTokenizer.from_pretrained("out").chat_template)
    assert (
        Path("out/Modelfile")
        .read_text()
        .startswith('FROM .\nTEMPLATE """### User:\n{{ .Prompt }}\n\n### Assistant:\n"""\nPARAMETER stop "<eos>"\n')
    )
    assert "apply_chat_template" in Path("out/README.md").read_text()


PEFT = """
import sys
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
sys.path.insert(0, sys.argv[1])
from test_export import PROMPTS, greedy
model, tokenizer = (kind.from_pretrained("elsewhere/copy") for kind in (AutoPeftModelForCausalLM, AutoTokenizer))
print([greedy(model.eval(), tokenizer, prompt) for prompt in PROMPTS])
"""


@pytest.mark.slow
def test_an_adapter_alone_opens_with_peft_where_its_base_is_known(small_run: KeptRun, export: Export) -> None:
    done = export("small:thin", "out", "--adapter")

    assert done.exit_code == 0, done.stderr
    there = moved("out")
    told = json.loads((there / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["revision"][:4]) == ("owner/tiny", "0123")
    hub = {"HF_HUB_CACHE": str(small_run.runs.parent / "hub"), "HF_HUB_OFFLINE": "1"}
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEFT, str(Path(__file__).parent)],
        env=os.environ | hub, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.stdout == f"{answers(small_run, 'thin')}\n", shown.stderr


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("plain", "its policy is no adapter, it has full weights; leave --adapter out"),
        (
            "layered",
            "the adapter's base is a folder of this machine, which others cannot resolve; leave --adapter out: it is "
            "then merged with its base",
        ),
    ],
)
def test_an_adapter_that_others_could_not_open_is_refused(export: Export, stage: str, said: str) -> None:
    done = export(f"small:{stage}", "out", "--adapter")

    assert (done.exit_code, done.stderr) == (1, f"error: stage '{stage}': {said}\n")
    assert not Path("out").exists()


def test_nothing_is_written_over(export: Export) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")

    done = export("small", "out")

    assert (done.exit_code, done.stderr) == (
        2,
        "error: out: there is something there already; name a folder that is new or empty\n",
    )


def test_the_card_tells_lineage_figures_data_and_how_it_is_made_again(small_run: KeptRun, export: Export) -> None:
    export("small:layered", "out")

    card = Path("out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "| `plain` | sft (alignkit 0.1.0) | policy = base, demos = demos |" in card
    assert "`lora = { rank = 2 }`" in card or "lora.rank = 2" in card
    assert "| `demos` | Demonstrations | demos.jsonl |" in card
    assert "| `pairs` |" not in card
    assert "chatty" not in card.partition("## Verify")[0]
    assert "- `layered`\n  - Perplexity" in card
    assert f"alignkit reproduce {small_run.id}" in card
    assert small_run.recipe_text.rstrip() in card
    assert Path("out/recipe.toml").read_text() == small_run.recipe_text
    assert str(small_run.runs.parent) not in card


def test_without_llama_cpp_gguf_is_refused_before_anything_is_written(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")

    done = export("small:plain", "out", "--gguf")

    assert (done.exit_code, done.stderr) == (
        2,
        "error: --gguf: llama.cpp's convert_hf_to_gguf.py is not on PATH; clone https://github.com/ggml-org/llama.cpp, "
        "install its requirements.txt, put its folder into PATH\n",
    )
    assert not Path("out").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_gguf_is_written_by_llama_cpp(export: Export, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    script = Path("bin/convert_hf_to_gguf.py")
    script.parent.mkdir()
    ending = "sys.exit('no such architecture')" if fails else "open(sys.argv[3], 'w').write(str(sys.argv[1:]))"
    script.write_text(f"import sys\n{ending}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent.resolve()}:{os.environ['PATH']}")

    done = export("small:plain", "out", "--gguf", "--ollama")

    if fails:
        assert "error: out: convert_hf_to_gguf.py failed (no such architecture)" in done.stderr
    else:
        told = Path("out/model.gguf").read_text()
        assert told == str(["out", "--outfile", "out/model.gguf", "--outtype", "auto"])
        assert Path("out/Modelfile").read_text().startswith("FROM ./model.gguf\n")
        assert "model.gguf" in Path("out/SHA256SUMS").read_text()


class FakeHub:
    """Takes what is uploaded, or refuses it."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.calls = refuses, list[dict[str, Any]]()

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        if self.refuses:
            raise OSError("no token")
        self.calls.append({"repo": repo_id, "private": private, "exist_ok": exist_ok})

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.calls.append({"repo": repo_id, "files": [file.name for file in Path(folder_path).iterdir()]})


def test_a_push_makes_a_private_repository_and_uploads_the_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    hub = FakeHub()

    push(tmp_path, "me/mine", hub)

    assert hub.calls == [
        {"repo": "me/mine", "private": True, "exist_ok": True},
        {"repo": "me/mine", "files": ["config.json"]},
    ]


def test_a_push_that_the_hub_refuses_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"--push me/mine: the hub refuses the upload \(OSError: no token\)"):
        push(tmp_path, "me/mine", FakeHub(refuses=True))


def test_a_folder_of_results_can_be_moved_with_its_adapters(small_run: KeptRun, tmp_path: Path) -> None:
    shutil.copytree(small_run.runs, tmp_path / "runs", symlinks=True)

    (adapter,) = (tmp_path / "runs" / "stages").glob("layered-*/artifact")

    (base,) = (tmp_path / "runs" / "stages").glob("plain-*/artifact")
    assert base_folder(adapter) == base.resolve()
    assert str(small_run.runs) not in (adapter / "adapter_config.json").read_text()
