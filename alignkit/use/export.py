"""Taking a policy away: a folder that opens with plain transformers, or PEFT, wherever it is copied to."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from alignkit.contract.kinds import Policy
from alignkit.data.adapter_folder import BESIDE, is_adapter, named_base
from alignkit.errors import RecipeError, StageError, one_line
from alignkit.show.model_card import SUMS, CardSubject, write_card
from alignkit.store.durable import hash_file
from alignkit.training.models import load_policy
from alignkit.training.saving import save_policy
from alignkit.training.templates import PROBE, closing_text, rendered
from alignkit.training.tokenizers import policy_tokenizer
from alignkit.use.run_policy import RunPolicy

CONVERTER = "convert_hf_to_gguf.py"
"""llama.cpp's."""
TEMPLATES = ("chat_template.jinja", "chat_template.json")
"""Files of a chat template; older ones stand in `tokenizer_config.json`."""


@dataclass(frozen=True)
class Takeaway:
    """What is written."""

    adapter: bool = False
    """The adapter alone."""
    gguf: bool = False
    ollama: bool = False


def take_away(found: RunPolicy, folder: Path, what: Takeaway) -> Path:
    """Write a policy with its model card into a folder that is new or empty, and return the folder.

    Raises RecipeError where it holds something, or where llama.cpp is asked for and missing, and StageError where there
    is no adapter, or none whose base others can find.
    """
    converter = find_converter() if what.gguf else None
    export(found, folder, adapter=what.adapter)
    gguf = write_gguf(folder, converter) if converter else None
    if what.ollama:
        write_modelfile(found, folder, gguf)
    write_card(CardSubject(found.run, found.stage, found.form, what.adapter), folder)
    write_sums(folder)
    return folder


def export(found: RunPolicy, folder: Path, *, adapter: bool = False) -> None:
    """Write a policy into a folder that is new or empty: full weights, or with `adapter` the adapter alone.

    The chat template comes along only where the policy has learnt by it. Raises RecipeError where the folder holds
    something, and StageError where there is no adapter, or none whose base others can find.
    """
    refuse_full(folder)
    if adapter:
        check_base(found.policy)
    folder.mkdir(parents=True, exist_ok=True)
    if adapter or not is_adapter(found.policy.path):
        for file in sorted(found.policy.path.iterdir()):
            if file.name != BESIDE and file.is_file():
                shutil.copyfile(file, folder / file.name)
    else:
        model, tokenizer = load_policy(found.policy, precision="fp32", trainable=False)
        save_policy(model, tokenizer, folder)
    if found.form == "plain":
        remove_template(folder)


def refuse_full(folder: Path) -> None:
    """Raise RecipeError where a folder holds something already, or is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError("there is something there already", str(folder), "name a folder that is new or empty")


def check_base(policy: Policy) -> None:
    """Raise StageError where a policy is no adapter, or one whose base has no name that others can resolve."""
    where = f"stage {policy.name!r}"
    if not is_adapter(policy.path):
        raise StageError("its policy is no adapter, it has full weights", where, "leave --adapter out")
    if named_base(policy.path)[1] is None:
        problem = "the adapter's base is a folder of this machine, which others cannot resolve"
        raise StageError(problem, where, "leave --adapter out: it is then merged with its base")


def remove_template(folder: Path) -> None:
    """Take the chat template out of a folder: its policy has never seen one."""
    for name in TEMPLATES:
        (folder / name).unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    facts = json.loads(file.read_text("utf-8"))
    if facts.pop("chat_template", None) is not None:
        file.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_sums(folder: Path) -> None:
    """Write the hashes of all files, as `sha256sum -c` reads them."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != SUMS)
    (folder / SUMS).write_text("".join(f"{hash_file(file)}  {file.name}\n" for file in files), "utf-8")


def find_converter() -> str:
    """Return where llama.cpp's converter lies. Raises RecipeError where it is not installed."""
    found = shutil.which(CONVERTER)
    if found is None:
        remedy = "clone https://github.com/ggml-org/llama.cpp, install its requirements.txt, put its folder into PATH"
        raise RecipeError(f"llama.cpp's {CONVERTER} is not on PATH", "--gguf", remedy)
    return found


def write_gguf(folder: Path, converter: str) -> Path:
    """Convert a folder of full weights with llama.cpp. Raises StageError with what its converter said."""
    file = folder / "model.gguf"
    command = [sys.executable, converter, str(folder), "--outfile", str(file), "--outtype", "auto"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not file.is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise StageError(f"{CONVERTER} failed ({said})", str(folder), "look whether it knows this architecture")
    return file


def write_modelfile(found: RunPolicy, folder: Path, gguf: Path | None) -> None:
    """Write what `ollama create NAME -f Modelfile` reads: the weights, how they are asked, and where answers end."""
    tokenizer = policy_tokenizer(found.policy)
    generation = _generation(folder)
    template = "{{ .Prompt }}"
    if found.form == "chat":
        asked = rendered(tokenizer, [{"role": "user", "content": PROBE}], asking=True)
        template = asked.removeprefix(str(tokenizer.bos_token or "")).replace(PROBE, "{{ .Prompt }}")
    ends = dict.fromkeys([str(tokenizer.eos_token), *([closing_text(tokenizer)] if found.form == "chat" else [])])
    lines = [
        f"FROM ./{gguf.name}" if gguf else "FROM .",
        f'TEMPLATE """{template}"""',
        *(f'PARAMETER stop "{end}"' for end in ends if end),
        *([f"PARAMETER num_predict {generation['max_new_tokens']}"] if "max_new_tokens" in generation else []),
        "PARAMETER temperature 1",
        "PARAMETER top_k 0",
        "PARAMETER top_p 1",
        "PARAMETER repeat_penalty 1",
    ]
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", "utf-8")


def _generation(folder: Path) -> Mapping[str, Any]:
    file = folder / "generation_config.json"
    facts: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return facts


class Hub(Protocol):
    """What of the hub's interface a push needs (`huggingface_hub.HfApi`)."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any: ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any: ...


def push(folder: Path, name: str, hub: Hub) -> None:
    """Upload a folder to the hub, into a repository that is private where it is new.

    Raises RecipeError where the hub refuses it.
    """
    try:
        hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Upload a policy made with alignkit")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        remedy = f"log in with `hf auth login`, check the name; the folder {folder} is there, `hf upload` takes it, too"
        raise RecipeError(f"the hub refuses the upload ({one_line(error)})", f"--push {name}", remedy) from error
