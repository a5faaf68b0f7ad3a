"""The README's recipe of one's own data is one that runs, with small files in the places that it names."""

import gzip
import json
import re
from itertools import islice
from pathlib import Path

import pyarrow.parquet
import pytest
from click.testing import CliRunner

from alignkit.cli import main
from alignkit.demo.reviews import rows

README = Path(__file__).parents[2] / "README.md"
MODEL = "hf:HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> Path:
    """Write the README's recipe and its files; the model is a small one of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNKIT_PLUGINS", raising=False)
    (text,) = [block for block in re.findall(r"```toml\n(.*?)```", README.read_text("utf-8"), re.S) if MODEL in block]
    Path("mine.toml").write_text(text.replace(MODEL, str(model_folder)), "utf-8")
    Path("data/support").mkdir(parents=True)
    demos = list(islice(rows("demonstrations", "train"), 200))
    with gzip.open("data/support/one.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"question": r["prompt"], "answer": r["completion"]}) + "\n" for r in demos[:100])
    with Path("data/chats.jsonl").open("w", encoding="utf-8") as file:
        for row in demos[100:]:
            chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
            file.write(json.dumps({"messages": chat}) + "\n")
    pairs = [
        {"request": row["prompt"], "better": row["chosen"], "worse": row["rejected"]}
        for row in islice(rows("preferences", "train"), 100)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs), "data/pairs.parquet")
    prompts = [row["prompt"] for row in islice(rows("prompts", "train"), 100)]
    Path("data/prompts.txt").write_text("\n".join(prompts), "utf-8")
    return tmp_path


def test_the_readmes_own_data_recipe_is_planned(own_data: Path) -> None:
    result = CliRunner().invoke(main, ["plan", "mine.toml"])

    assert result.exit_code == 0, result.stderr
    assert (
        "align     ppo     will run  Policy       policy=finetune rewards=reward+short prompts=prompts" in result.stdout
    )


@pytest.mark.slow
def test_the_readmes_own_data_recipe_runs(own_data: Path) -> None:
    words = ["--set", "defaults.max_length=256", "--set", "align.ppo.updates=1", "--set", "reward.gates.accuracy.min=0"]

    result = CliRunner().invoke(main, ["recipe", "mine.toml", "--inline", *words])

    assert result.exit_code == 0, result.output
    assert (own_data / "runs" / "mine" / "latest" / "report.html").is_file()
