"""Preflight: what stages will need, what does not fit, and every stage in small; nothing is trained to find it out."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from tiny_models import write_gguf
from transformers import AutoConfig, AutoModelForMaskedLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel, RobertaConfig
from transformers.utils import logging

from alignkit.cli import main
from alignkit.compare.comparison import compare_recipe
from alignkit.contract.kinds import Policy
from alignkit.contract.settings import LoRA
from alignkit.errors import DataError, Problem, RecipeError
from alignkit.estimate import counting, estimator as estimators, formulas as estimating, preflight as preflights
from alignkit.estimate.desk import desk_for
from alignkit.estimate.estimator import Estimator
from alignkit.estimate.formulas import Facts, Job, estimated
from alignkit.estimate.preflight import ALONE, Preflight, Sharing, preflight
from alignkit.estimate.sizes import sizes_of
from alignkit.estimate.timing import Gauge, Rate, gauge
from alignkit.methods.ppo import PPOSettings, ppo
from alignkit.methods.sft import SFTSettings, sft
from alignkit.plan.planner import make_plan
from alignkit.run import smoke
from alignkit.run.runner import run_recipe
from alignkit.testing import write_tiny_policy, write_tiny_reward
from alignkit.training import room
from alignkit.training.models import load_policy
from alignkit.training.optimisers import STATE_BYTES
from alignkit.training.room import Arrangement
from alignkit.training.tokenizers import open_tokenizer

H100 = 85_017_755_648
"""Bytes of its memory."""
GAUGE = Gauge(
    1000.0, Rate(1e-4, 1e-4, 1e-6), Rate(3e-4, 3e-4, 3e-6), Rate(1e-4, 1e-4, 1e-6), 1e-9, 3e-9, Rate(0, 1e-8, 1e-9)
)
FACTS = Facts(rows=100, held_out=10, prompt=10.0, answer=20.0, longest=40)
DEMOS = "".join(json.dumps({"prompt": f"the food {n}", "completion": " was good"}) + "\n" for n in range(60))

GOLD_AND_PROMPTS = 'gold = { reward = "function:reviews-gold" }\nasked = { prompts = "builtin:reviews", rows = 40 }'


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe with one SFT stage on a tiny model of our own."""
    write_tiny_policy(tmp_path / "model")
    (tmp_path / "demos.jsonl").write_text(DEMOS)

    def write(*lines: str, method: str = "sft", sources: str = "") -> Path:
        text = f'[sources]\nbase = {{ policy = "model" }}\ndemos = {{ demonstrations = "demos.jsonl" }}\n{sources}\n'
        file = tmp_path / "r.toml"
        file.write_text("\n".join([text, "[stage.one]", f'method = "{method}"', *lines]) + "\n")
        return file

    return write


def found_of(file: Path, on: Sharing = ALONE) -> Preflight:
    runs = file.parent / "runs"
    plan = make_plan(file, runs=runs)
    desk, _ = desk_for(plan, runs, offline=True)
    return preflight(desk, on)


def problems(found: Preflight) -> list[str]:
    return [str(problem) for problem in found.problems]


def checked(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


@pytest.mark.parametrize("lora", [None, LoRA()])
def test_sizes_are_those_of_the_model_that_is_trained(tiny_policy: Policy, lora: LoRA | None) -> None:
    model, _ = load_policy(tiny_policy, lora=lora)

    sizes = sizes_of(AutoConfig.from_pretrained(tiny_policy.path), lora)

    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert (sizes.weights, sizes.trained) == (sum(weight.numel() for weight in model.parameters()), trained)


def test_what_upper_layers_hold_is_their_share_of_the_layers(tiny_policy: Policy) -> None:
    config = AutoConfig.from_pretrained(tiny_policy.path)
    model, _ = load_policy(tiny_policy)
    one = sum(weight.numel() for name, weight in model.named_parameters() if ".layers.0." in name)

    assert sizes_of(config, upper=1).trained == pytest.approx(one, rel=0.02)


def test_a_gauge_tells_more_of_a_wider_model(tiny_policy: Policy) -> None:
    config = AutoConfig.from_pretrained(tiny_policy.path)
    narrow = gauge(config, None, "fp32")
    config.hidden_size, config.intermediate_size, config.head_dim = 4 * config.hidden_size, 512, 32

    wide = gauge(config, None, "fp32")

    assert 2 * narrow.kept < wide.kept
    assert all(rate.each > 0 for rate in (narrow.read, narrow.learn, narrow.decode))


def test_a_model_is_gauged_once(tiny_policy: Policy) -> None:
    config = AutoConfig.from_pretrained(tiny_policy.path)

    assert gauge(config, None, "fp32") == gauge(AutoConfig.from_pretrained(tiny_policy.path), None, "fp32")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_layers_that_are_compiled_keep_inputs_of_norms_products_and_attention_alone(tiny_policy: Policy) -> None:
    config = AutoConfig.from_pretrained(tiny_policy.path)
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    keys = config.num_key_value_heads * config.head_dim

    plain, compiled = (gauge(config, None, "fp32", compiles=compiles).kept for compiles in (False, True))

    norms, products, attention = 2 * width + 2, 2 * width + 3 * inner, 2 * width + 2 * keys + heads
    assert compiled == 4 * (norms + products + attention)
    assert plain > 1.2 * compiled


@pytest.mark.parametrize("words", [[], ["compiled"]])
def test_memory_that_was_measured_on_a_gpu_is_that_of_what_a_token_keeps(words: list[str]) -> None:
    lines = (Path(__file__).parents[2] / "docs" / "figures" / "gpu_h100.jsonl").read_text("utf-8").splitlines()
    told = next(one for one in map(json.loads, lines) if one["job"] == "dpo" and one["words"] == words)
    taken = 1e9 * sum(size for part, size in told["parts"].items() if part != "activations")
    kept = float(told["passes"]["kept"])

    tokens = room.fitting(H100, taken, kept)

    assert tokens == told["passes"]["tokens"]
    assert taken + estimating.ON_GPU * kept * tokens == pytest.approx(1e9 * told["peak_gb"], rel=0.02)


@pytest.mark.parametrize(
    ("kept", "auto", "again", "never"),
    [(1e5, 8192, 32768, 8192), (7e4, 16384, 32768, 16384), (5e5, 32768, 32768, 2048)],
)
def test_layers_are_computed_again_where_few_tokens_fit_or_the_machine_says_so(
    kept: float, auto: int, again: int, never: int
) -> None:
    sizes = estimating.Sizes(1540_000_000, 1540_000_000, 28, 1536, 151936, 1024)

    spaces = [estimating.space_on_card(sizes, kept, H100, 33.1e9, how).tokens for how in ("auto", True, False)]

    assert spaces == [auto, again, never]


def need(settings: Any, facts: Facts = FACTS, lora: LoRA | None = None) -> Any:
    sizes = estimating.Sizes(1000_000, 10_000 if lora else 1000_000, 8, 128, 500, 1024)
    needs: Any = (ppo if isinstance(settings, PPOSettings) else sft).needs(settings)
    return estimated(needs, Job(needs, facts, sizes, GAUGE))


def test_memory_grows_with_batch_and_length_and_shrinks_with_lora() -> None:
    base = need(SFTSettings(batch=8))

    assert need(SFTSettings(batch=16)).memory > base.memory
    assert need(SFTSettings(batch=8), facts=FACTS._replace(longest=80)).memory > base.memory
    assert need(SFTSettings(batch=8, lora=LoRA()), lora=LoRA()).parts["optimiser"] == base.parts["optimiser"] / 100


def test_a_reference_that_is_no_start_is_a_model_more_where_adapters_learn() -> None:
    sizes, needs = estimating.Sizes(1000_000, 10_000, 8, 128, 500, 1024), ppo.needs(PPOSettings(lora=LoRA()))

    alone, beside = (estimated(needs, Job(needs, FACTS, sizes, GAUGE, apart=apart)).parts for apart in (False, True))

    assert beside["weights"] - alone["weights"] == 4 * 1000_000


def test_moments_in_8_bits_are_a_quarter() -> None:
    sizes, needs = estimating.Sizes(1000_000, 1000_000, 8, 128, 500, 1024), sft.needs(SFTSettings())
    assert needs
    full, small = (
        estimated(needs, Job(needs, FACTS, sizes, GAUGE, how=Arrangement(states=states))).parts
        for states in ("fp32", "8bit")
    )

    assert (full["optimiser"], small["optimiser"]) == (8e6, STATE_BYTES["8bit"] * 1e6)
    assert {name for name in full if full[name] != small[name]} == {"optimiser"}


def test_layers_that_are_computed_again_keep_their_inputs_and_what_one_of_them_keeps() -> None:
    sizes, needs = estimating.Sizes(1000_000, 1000_000, 8, 128, 500, 1024), sft.needs(SFTSettings())
    assert needs
    kept, again = (
        estimated(needs, Job(needs, FACTS, sizes, GAUGE, how=Arrangement(again=again))).parts["activations"]
        for again in (False, True)
    )

    assert again / kept == pytest.approx((1000 + 4 * 8 * 128) / (8 * 1000))


def test_full_training_holds_weights_gradients_and_two_moments() -> None:
    parts = need(SFTSettings(batch=8)).parts

    assert [parts[name] for name in ("weights", "gradients", "optimiser")] == [4e6, 4e6, 8e6]


def test_time_grows_with_rows_and_updates() -> None:
    few, many = (need(SFTSettings(), facts=FACTS._replace(rows=rows)).seconds for rows in (1000, 10_000))
    short, long = (need(PPOSettings(updates=updates)).seconds for updates in (10, 100))

    assert 6 < many / few < 11
    assert 5 < long / short < 11


@pytest.mark.parametrize(("said", "policies"), [("", 8), ("evaluate.snapshots = false", 2)])
def test_policies_on_the_way_are_measured_too(
    recipe: Callable[..., Path], tmp_path: Path, said: str, policies: int
) -> None:
    scores = ["[stage.scores]", 'method = "evaluate"', 'inputs.policies = ["base", "one"]', said]
    file = recipe("sft.snapshots = 6", *scores, sources=GOLD_AND_PROMPTS)
    plan = make_plan(file, runs=tmp_path / "runs")
    desk, _ = desk_for(plan, tmp_path / "runs", offline=True)

    job = Estimator(desk).job(plan.stage("scores"), plan.stage("scores").needs)

    assert job is not None
    assert job.policies == policies


def test_layouts_of_ppo_hold_less_and_less() -> None:
    separate, shared, frozen = (
        need(PPOSettings(layout=layout, trained_layers=1)).memory for layout in ("separate", "shared", "frozen")
    )

    assert separate > shared > frozen


@pytest.mark.slow
def test_every_stage_of_the_chain_is_estimated(tmp_path: Path) -> None:
    result = checked("rlhf", "--json", "--runs", tmp_path / "runs", "--offline")

    needs = json.loads(result.stdout)["needs"]
    assert [one["stage"] for one in needs] == ["pretrain", "finetune", "reward", "align", "scores"]
    assert all(one["memory"] > 100 * 2**20 and one["seconds"] > 0 for one in needs)


def test_a_stage_that_needs_more_than_there_is_is_refused_with_what_would_help(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "machine_memory", lambda: 2**20)

    (problem,) = found_of(recipe("sft.batch = 64")).problems

    assert problem.where == "stage 'one'"
    # How much depends on the build of torch: that for CUDA takes 0.4 GiB more than that for processors.
    assert re.fullmatch(r"needs about \d\.\d GiB of memory, and this machine has 0\.0", problem.problem)


@pytest.mark.parametrize(
    ("processes", "sharded", "fits", "refused"), [(1, True, True, 0), (2, True, False, 0), (2, False, False, 1)]
)
def test_what_fits_no_process_whole_is_refused_unless_its_weights_may_be_cut_up(
    recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    sharded: bool,
    fits: bool,
    refused: int,
) -> None:
    file = recipe("sft.batch = 64")
    libraries = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0))
    monkeypatch.setattr(estimators.psutil, "Process", lambda: libraries)
    whole, parted = (found_of(file, on).stages[0]["memory"] for on in (ALONE, Sharing(2, True, always=True)))
    assert parted < whole
    monkeypatch.setattr(estimating, "machine_memory", lambda: int(whole + parted))

    found = found_of(file, Sharing(processes, sharded))

    assert [stage["fits"] for stage in found.stages] == [fits]
    assert len(found.problems) == refused


@pytest.mark.parametrize(
    ("method", "line", "what"),
    [
        ("trl-kto", "", "what a trainer of TRL trains"),
        ("ppo", 'ppo = { layout = "frozen", trained_layers = 1 }', "a policy whose lower layers are frozen"),
    ],
)
def test_what_cannot_be_cut_up_is_refused_before_the_first_stage(
    recipe: Callable[..., Path], method: str, line: str, what: str
) -> None:
    given = {"trl-kto": 'pairs = { preferences = "builtin:reviews", rows = 40 }', "ppo": GOLD_AND_PROMPTS}[method]
    file = recipe(line, method=method, sources=given)

    always, never = (found_of(file, Sharing(2, True, always=cut)) for cut in (True, False))

    remedy = "set sharded = false for the machine in machines.toml"
    assert Problem(f"{what} cannot be sharded", "stage 'one'", remedy) in always.problems
    assert never.problems == []


def test_a_reward_model_that_a_server_holds_takes_no_memory_of_the_stage(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0))
    monkeypatch.setattr(estimators.psutil, "Process", lambda: libraries)
    write_tiny_reward(tmp_path / "taste")
    file = recipe(method="grpo", sources='taste = { reward = "taste/reward" }\n' + GOLD_AND_PROMPTS.split("\n")[1])

    here, there = (found_of(file, Sharing(served=served)).stages[0]["memory"] for served in (False, True))

    weights = sum(tensor.numel() for tensor in load_file(tmp_path / "taste" / "reward" / "model.safetensors").values())
    assert here - there == pytest.approx(4 * weights, rel=0.05)


def test_a_reward_model_that_no_server_can_hold_is_refused_before_it_is_trained(
    recipe: Callable[..., Path],
) -> None:
    pairs = 'pairs = { preferences = "builtin:reviews", rows = 40 }\n' + GOLD_AND_PROMPTS.split("\n")[1]
    file = recipe("lora = {}", "[stage.two]", 'method = "grpo"', method="reward", sources=pairs)

    served, here = (found_of(file, Sharing(served=served)).problems for served in (True, False))

    assert [str(problem) for problem in served] == [
        "stage 'two', machines.toml, rewards: no server can score by 'one', which is an adapter; train all its "
        "weights, or merge it with its base into one folder of full weights, or leave rewards out of the machine"
    ]
    assert here == []


def test_moments_in_8_bits_cannot_be_cut_up(recipe: Callable[..., Path]) -> None:
    found = found_of(recipe(), Sharing(2, True, always=True, states="8bit"))

    remedy = "set sharded = false for the machine in machines.toml"
    assert Problem("an optimiser with 8-bit states cannot be sharded", "stage 'one'", remedy) in found.problems


def test_what_a_machine_lacks_for_8_bits_is_refused_before_the_first_stage(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))

    found = found_of(recipe(), Sharing(states="8bit"))

    assert problems(found) == [
        'optimiser_states = "8bit": the package bitsandbytes is missing; pip install "alignkit[8bit]"'
    ]


def test_the_settings_that_help_most_come_first(recipe: Callable[..., Path]) -> None:
    file = recipe("sft.batch = 64")
    runs = file.parent / "runs"
    plan = make_plan(file, runs=runs)
    desk, _ = desk_for(plan, runs, offline=True)
    estimator = Estimator(desk)
    estimator._libraries = 0
    estimating_all = estimator.helps(plan.stage("one"))

    assert [one.memory for one in estimating_all] == sorted(one.memory for one in estimating_all)
    assert all(one.setting.startswith("one.sft.") for one in estimating_all)


def test_what_a_tiny_model_cannot_do_is_found_before_it_is_loaded(recipe: Callable[..., Path]) -> None:
    lora = found_of(recipe('lora.targets = ["q_prj"]'))
    length = found_of(recipe("max_length = 100000"))

    assert problems(lora) == ["stage 'one', lora.targets: the model has no layers q_prj; did you mean 'q_proj'?"]
    assert problems(length)[0].startswith("stage 'one', max_length: the model reads at most ")


@pytest.mark.parametrize(("method", "kept"), [("sft", 60), ("dpo", 40)])
def test_pairs_that_are_left_out_take_no_time_and_cut_demonstrations_some(
    recipe: Callable[..., Path], tmp_path: Path, method: str, kept: int
) -> None:
    rows = [
        {"prompt": f"the food {n}", "chosen": " was good" * (1 + 30 * (n % 3 == 0)), "rejected": " no"}
        for n in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    demos = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demos))
    pairs = 'pairs = { preferences = "pairs.jsonl", held_out = 0.0001 }'
    file = recipe("max_length = 24", f"{method}.max_lost = 1.0", method=method, sources=pairs)
    runs = file.parent / "runs"
    plan = make_plan(file, set={"demos.held_out": 0.0001}, runs=runs)
    desk, _ = desk_for(plan, runs, offline=True)

    job = Estimator(desk).job(plan.stage("one"), plan.stage("one").needs)

    assert job is not None
    assert job.facts.rows + job.facts.held_out == pytest.approx(kept, abs=1)
    assert job.facts.longest <= 24


def test_small_models_are_tried_without_bars_of_progress(recipe: Callable[..., Path]) -> None:
    logging.enable_progress_bar()

    found_of(recipe())

    assert not logging.is_progress_bar_enabled()


def test_rows_that_would_be_left_out_are_counted_before(recipe: Callable[..., Path]) -> None:
    assert problems(found_of(recipe("max_length = 3"))) == [
        "stage 'one', source 'demos': 100% of 60 rows are longer than 3 tokens; raise max_length, shorten them, "
        "or raise max_lost (0.05)"
    ]


def test_a_reward_model_without_a_head_is_refused(recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"the food {n}"}) + "\n" for n in range(40)))
    sources = 'rm = { reward = "rm" }\nasked = { prompts = "p.jsonl" }'
    write_tiny_reward(tmp_path / "made")
    (tmp_path / "made" / "reward").rename(tmp_path / "rm")
    good = found_of(recipe("ppo.generation.max_new_tokens = 4", method="ppo", sources=sources))

    (tmp_path / "rm" / "model.safetensors").write_bytes((tmp_path / "model" / "model.safetensors").read_bytes())
    bad = found_of(recipe("ppo.generation.max_new_tokens = 4", method="ppo", sources=sources))

    assert problems(good) == []
    assert problems(bad)[0].startswith("stage 'one', ")
    assert "source 'rm' has no weights of a score's head, so its scores would be noise" in problems(bad)[0]


def with_reward(folder: Path) -> str:
    """Write a reward model and prompts; give their sources."""
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": f"the food {n}"}) + "\n" for n in range(40)))
    write_tiny_reward(folder / "made")
    (folder / "made" / "reward").rename(folder / "rm")
    return 'rm = { reward = "rm" }\nasked = { prompts = "p.jsonl" }'


def pickled(folder: Path, without: str = "") -> None:
    """Let a folder's weights lie in a pickled file, without those of one name."""
    weights = load_file(folder / "model.safetensors")
    torch.save({name: weight for name, weight in weights.items() if name != without}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_the_head_of_a_pickled_reward_model_is_looked_for_beforehand(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    file = recipe("ppo.generation.max_new_tokens = 4", method="ppo", sources=with_reward(tmp_path))
    config = json.loads((tmp_path / "rm" / "config.json").read_text())
    plain = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
    (tmp_path / "rm" / "config.json").write_text(json.dumps(plain))
    pickled(tmp_path / "rm")
    good = problems(found_of(file))

    (tmp_path / "rm" / "pytorch_model.bin").unlink()
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "rm")
    pickled(tmp_path / "rm")

    assert good == []
    assert problems(found_of(file)) == [
        f"stage 'one', {tmp_path}/rm: source 'rm' has no weights of a score's head, so its scores would be noise; give "
        "the folder of a reward model, or use it as a policy"
    ]


def test_tokens_that_a_reward_model_lacks_are_told_and_prompts_with_them_are_refused(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    file = recipe("ppo.generation.max_new_tokens = 4", method="ppo", sources=with_reward(tmp_path))
    tokenizer = open_tokenizer(tmp_path / "rm")
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(tmp_path / "rm")
    told = found_of(file)

    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"<tool> {n}"}) + "\n" for n in range(40)))

    assert problems(told) == []
    assert (
        "source 'rm': 1 token of the tokenizer of 'rm' has no weights in its model, which knows 384; give the model's "
        "own tokenizer: an answer with such a token would end the stage"
    ) in [str(remark) for remark in told.remarks]
    assert problems(found_of(file)) == [
        f"stage 'one', {tmp_path}/p.jsonl:1: 40 of 40 rows of 'asked' hold tokens that 'rm' has no weights for; it has "
        "them for 384 tokens, and '<tool>' is number 384; give the model's tokenizer"
    ]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"num_attention_heads": 5},
            "the model's config cannot be read (The hidden size (32) is not a multiple of the number of attention "
            "heads (5)); correct it, or copy the folder again",
        ),
        (
            {"hidden_size": "32"},
            "the model's config cannot be read (Field 'hidden_size' expected int, got str (value: '32')); correct it, "
            "or copy the folder again",
        ),
        (
            {"model_type": "llama9"},
            f"transformers {transformers.__version__} knows no architecture 'llama9'; install a transformers that "
            "does, or correct model_type",
        ),
    ],
)
def test_a_config_that_transformers_does_not_read_is_told_by_its_file(
    recipe: Callable[..., Path], tmp_path: Path, changed: dict[str, Any], problem: str
) -> None:
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    assert problems(found_of(recipe())) == [f"stage 'one', {file}: {problem}"]


def test_every_policy_of_a_stage_is_looked_at(recipe: Callable[..., Path], tmp_path: Path) -> None:
    sources = f'{with_reward(tmp_path)}\nother = {{ policy = "other" }}'
    file = recipe('inputs.policies = ["base", "other"]', method="evaluate", sources=sources)
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    config = RobertaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "other")

    assert problems(found_of(file)) == [
        f"stage 'one', {tmp_path}/other: the model (roberta) is no causal language model: its tokens see what follows "
        "them; give a decoder as policy; an encoder can score answers, as a reward"
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x08\0\0\0\0\0\0\0{}      ", "stage 'one', "),  # a whole file, of no tensors
        (None, "the weights cannot be read ("),
    ],
)
def test_weights_that_are_cut_off_are_refused(
    recipe: Callable[..., Path], tmp_path: Path, content: bytes | None, problem: str
) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(content or weights.read_bytes()[:-100])

    found = problems(found_of(recipe()))

    assert any(problem in one for one in found) == (content is None)


def test_weights_that_git_lfs_points_to_are_refused_by_the_plan(recipe: Callable[..., Path], tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")

    with pytest.raises(DataError, match="is a pointer of git LFS"):
        make_plan(recipe(), runs=tmp_path / "runs")


def test_tokens_that_the_model_does_not_know_are_told(recipe: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = open_tokenizer(tmp_path / "model")
    tokenizer.add_tokens(["<tool>", "<think>"])
    tokenizer.save_pretrained(tmp_path / "model")

    (remark,) = found_of(recipe()).remarks

    assert str(remark) == (
        "source 'base': 2 tokens of the tokenizer of 'base' have no weights in its model, which knows 384; "
        "sources.base.grow_embedding = true gives them rows; or give the model's own tokenizer"
    )


def with_tags(folder: Path) -> None:
    """Let rows hold tags that only the tokenizer knows."""
    tokenizer = open_tokenizer(folder / "model")
    tokenizer.add_tokens(["<tool>", "</tool>"])
    tokenizer.save_pretrained(folder / "model")
    ends = [" was bad", " was bad", *[" was <tool>good</tool>"] * 58]
    rows = [{"prompt": f"the food {n}", "completion": end} for n, end in enumerate(ends)]
    (folder / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_with_tokens_that_the_model_lacks_are_refused_with_the_first_place(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    with_tags(tmp_path)

    assert problems(found_of(recipe())) == [
        f"stage 'one', {tmp_path}/demos.jsonl:3: 58 of 60 rows of 'demos' hold tokens that 'base' has no weights for; "
        "it has them for 384 tokens, and '<tool>' is number 384; sources.base.grow_embedding = true gives them rows "
        "to be learnt, or give the model's tokenizer"
    ]


@pytest.mark.parametrize(
    "lora", ["", pytest.param("lora = { rank = 2 }", marks=pytest.mark.slow)], ids=["full", "lora"]
)
def test_a_word_in_the_recipe_lets_the_embedding_grow_and_it_stays_grown(
    recipe: Callable[..., Path], tmp_path: Path, lora: str
) -> None:
    with_tags(tmp_path)
    file = recipe("sft.epochs = 1", lora)
    file.write_text(f"{file.read_text()}\n[stage.two]\nmethod = 'sft'\nsft.epochs = 1\n{lora}\n")

    made = run_recipe(file, set={"base.grow_embedding": True}, runs=tmp_path / "runs", inline=True).artifact("two")

    assert isinstance(made, Policy)
    assert load_policy(made)[0].get_input_embeddings().num_embeddings == 386


def test_weights_of_other_sizes_than_the_config_says_are_refused_beforehand(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 400}))

    assert problems(found_of(recipe())) == [
        f"stage 'one', {tmp_path}/model: the weights do not fit config.json: model.embed_tokens.weight is (384, 32) in "
        "the files and (400, 32) by it; correct the config, or copy the folder again"
    ]


def test_a_model_that_is_no_decoder_is_refused_beforehand(recipe: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({"model_type": "t5"}))

    assert problems(found_of(recipe())) == [
        f"stage 'one', {tmp_path}/model: transformers has no language model of the kind 't5'; "
        "take a decoder, such as Llama, Qwen or Gemma"
    ]


def test_too_little_disk_is_told(recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflights.shutil, "disk_usage", lambda place: type("", (), {"free": 10})())

    (problem,) = found_of(recipe()).problems

    assert problem.problem.startswith("the stages need about 0.0 GiB of disk, and 0.0 GiB are free")


def test_a_stage_that_takes_longer_than_anybody_waits_is_refused(recipe: Callable[..., Path]) -> None:
    (told,) = problems(found_of(recipe("sft.epochs = 1000000000000000000")))

    assert re.fullmatch(
        "stage 'one': would take about [0-9,]+ years; lower what multiplies its steps, such as epochs or updates", told
    )


def test_a_batch_of_more_rows_than_there_are_is_estimated_at_once(recipe: Callable[..., Path]) -> None:
    assert found_of(recipe("sft.batch = 1000000000000")).stages[0]["steps"] == 2, "one an epoch"


def test_layers_that_no_model_has_are_refused_by_the_plan(recipe: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 10**9}))

    with pytest.raises(DataError) as refused:
        make_plan(recipe(), runs=tmp_path / "runs")

    problem = "source 'base': num_hidden_layers is 1000000000, more than any model has"
    assert str(refused.value) == f"{file}: {problem}; copy the file again"


def test_chats_without_a_template_are_worth_a_word(recipe: Callable[..., Path], tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "food?"}, {"role": "assistant", "content": "good"}]}
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(chat) + "\n" for _ in range(30)))

    found = found_of(recipe())

    assert [remark.problem for remark in found.remarks] == [
        "the tokenizer of 'base' has no chat template, so chats are written with plain headings"
    ]


def test_a_run_is_refused_before_its_first_stage(recipe: Callable[..., Path]) -> None:
    file = recipe('lora.targets = ["q_prj"]')

    with pytest.raises(RecipeError, match=r"stage 'one', lora\.targets: the model has no layers q_prj"):
        run_recipe(file, runs=file.parent / "runs", inline=True)

    assert not list((file.parent / "runs").glob("stages/*"))


NO_HEAD = "source 'rm' has no weights of a score's head, so its scores would be noise"


@pytest.fixture
def headless(recipe: Callable[..., Path], tmp_path: Path) -> Path:
    """Write a recipe that learns by PPO from a reward model without a head."""
    sources = with_reward(tmp_path)
    (tmp_path / "rm" / "model.safetensors").write_bytes((tmp_path / "model" / "model.safetensors").read_bytes())
    return recipe("ppo.generation.max_new_tokens = 4", method="ppo", sources=sources)


@pytest.mark.parametrize("inline", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_way_to_run_is_refused_before_the_first_stage(headless: Path, inline: bool) -> None:
    with pytest.raises(RecipeError, match=NO_HEAD):
        run_recipe(headless, runs=headless.parent / "runs", inline=inline)


def test_a_comparison_is_refused_before_the_first_stage(headless: Path) -> None:
    with pytest.raises(RecipeError, match=NO_HEAD):
        compare_recipe(headless, vary={"one.ppo.kl.coef": [0.1, 0.2]}, runs=headless.parent / "runs")

    assert not list(headless.parent.glob("runs/stages/*"))


def test_the_room_on_the_disk_is_looked_at_anew_each_time(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, free = recipe("sft.epochs = 1"), [10]
    monkeypatch.setattr(preflights.shutil, "disk_usage", lambda place: type("", (), {"free": free[0]})())
    runs: dict[str, Any] = {"runs": file.parent / "runs", "inline": True}
    with pytest.raises(RecipeError, match=r"0\.0 GiB are free"):
        run_recipe(file, **runs)

    free[0] = 2**40
    made = run_recipe(file, **runs)

    free[0] = 10
    with pytest.raises(RecipeError, match=r"0\.0 GiB are free"):
        run_recipe(file, again=["one"], **runs)
    assert made.stage("one").folder.is_dir()


def test_a_plan_is_looked_at_once(recipe: Callable[..., Path]) -> None:
    file = recipe("sft.epochs = 1")
    runs = file.parent / "runs"

    run_recipe(file, runs=runs, inline=True)
    run_recipe(file, runs=runs, again=["one"], inline=True)

    (folder,) = runs.glob("cache/preflight-*")
    assert preflights.found_in(folder) is not None


READS_ITS_OWN_WAY = """
from alignkit import Demonstrations, Policy, Settings, Stage, hookimpl, method

@method("own")
def own(settings: Settings, stage: Stage, *, policy: Policy, chats: Demonstrations) -> Policy:
    \"\"\"Read chats in a way of its own.\"\"\"

@hookimpl
def alignkit_methods():
    return [own]
"""


def test_rows_that_only_their_own_method_can_read_hide_nothing_else(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns, "tools": [{"type": "function"}]}) + "\n")
    (tmp_path / "own.py").write_text(READS_ITS_OWN_WAY)
    file = recipe("inputs.demos = ['demos']", sources='chats = { demonstrations = "chats.jsonl" }')
    text = file.read_text() + '[stage.two]\nmethod = "own"\ninputs.chats = ["chats"]\n'
    file.write_text('result = ["one", "two"]\n' + text)
    plan = make_plan(file, runs=tmp_path / "runs", plugins=[tmp_path / "own.py"])

    folder = preflights.ask(plan, ["one", "two"], tmp_path / "runs", True)
    preflights.answer(folder)

    found = preflights.found_in(folder)
    assert found is not None
    assert [one["stage"] for one in found.stages] == ["one"]


def test_the_report_shows_rows_as_the_model_sees_them(recipe: Callable[..., Path]) -> None:
    run_recipe(recipe("sft.epochs = 1"), runs=recipe().parent / "runs", inline=True)

    (report,) = recipe().parent.glob("runs/*/latest/report.html")
    text = report.read_text("utf-8")
    assert " tokens in 60 rows, the middle row has " in text
    assert '<pre class="row">the food 0<mark> was good&lt;eos&gt;</mark></pre>' in text


def test_tokens_are_counted_once_for_each_content(recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = found_of(recipe("sft.epochs = 1"))
    monkeypatch.setattr(counting, "count", None)

    again = found_of(recipe("sft.epochs = 2"))

    assert again.stages[0]["memory"] == pytest.approx(first.stages[0]["memory"], rel=0.5)
    assert again.stages[0]["steps"] == 2 * first.stages[0]["steps"]


def test_rows_that_a_stage_makes_arereckoned_with_one_for_each_prompt(tmp_path: Path) -> None:
    runs, plan = tmp_path, make_plan("rlaif.toml", runs=tmp_path)
    desk, _ = desk_for(plan, runs, offline=True)

    found = preflight(desk)

    assert [one["stage"] for one in found.stages] == ["pretrain", "finetune", "align", "scores"]
    assert [str(remark) for remark in found.remarks] == [
        "stage 'align': the rows are not made yet; the estimate assumes one per row of 'prompts'; "
        "--smoke makes some, and measures"
    ]


def test_pairs_that_are_learnt_apart_are_two_rows_each(recipe: Callable[..., Path], tmp_path: Path) -> None:
    pairs = [{"prompt": f"the food {n}", "chosen": " was good", "rejected": " was bad"} for n in range(40)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    batch = ["dpo.batch = 4", "dpo.epochs = 1"], ["kto.batch = 4", "kto.epochs = 1", "kto.kl_rows = 2"]
    sources = 'pairs = { preferences = "p.jsonl", held_out = 0.0 }'

    dpo, kto = (
        found_of(recipe(*lines, method=method, sources=sources))
        for method, lines in zip(("dpo", "kto"), batch, strict=True)
    )

    assert (dpo.stages[0]["steps"], kto.stages[0]["steps"]) == (10, 20)


def test_answers_to_one_prompt_that_are_learnt_together_are_one_row(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{"prompt": f"the food {n % 10}", "completion": f" was {n}", "rating": n} for n in range(40)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = 'answers = { ratings = "r.jsonl", held_out = 0.0 }'

    found = found_of(recipe("nca.batch = 4", "nca.epochs = 1", method="nca", sources=sources))

    assert found.stages[0]["steps"] == 3


def test_prompts_with_one_answer_each_teach_nothing_together(recipe: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"prompt": f"the food {n}", "completion": f" was {n}", "rating": n} for n in range(40)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = found_of(recipe(method="nca", sources='answers = { ratings = "r.jsonl", held_out = 0.0 }'))

    assert "no two rows have the same prompt" in str(found.problems[0])


def test_smoke_runs_every_stage_in_small_and_reckons_the_whole(recipe: Callable[..., Path]) -> None:
    file = recipe("sft.epochs = 1", "sft.batch = 4")

    result = checked(file, "--smoke", "--runs", file.parent / "runs", "--offline")

    assert result.exit_code == 0, result.output
    assert "trial measured, full run estimated:" in result.output
    assert (file.parent / "runs/cache/smoke/stages").is_dir()
    assert not (file.parent / "runs/stages").exists()


SMALL = {"seconds": 10.0, "stepping": 4.0, "steps": 2.0, "prompt": 10.0, "answer": 20.0}
WHOLE = {"seconds": 210.0, "stepping": 200.0, "steps": 100.0}


@pytest.mark.parametrize(
    ("taken", "reckoned"),
    [
        ({"seconds": 10.0, "a step": 2.0, "answer": 0.0}, 210.0),  # as estimated
        (
            {"seconds": 14.0, "a step": 4.0, "answer": 0.0},
            400.0 + 10.0,
        ),  # steps take twice as long
        ({"seconds": 16.0, "a step": 2.0, "answer": 0.0}, 200.0 + 20.0),  # the other way round
        ({"seconds": 14.0, "a step": 4.0, "answer": 50.0}, 200.0 + 10.0),  # ... since its answers are twice as long
        ({"seconds": 20.0, "a step": 0.0, "answer": 0.0}, 420.0),  # one step only was told of: all is scaled alike
    ],
)
def test_steps_and_what_is_done_once_are_corrected_apart(taken: dict[str, float], reckoned: float) -> None:
    assert smoke.extrapolated(WHOLE, SMALL, taken) == pytest.approx(reckoned)


@pytest.mark.parametrize(("seconds", "asked"), [(1.0, 20), (6.0, 10), (600.0, 8)])
def test_an_evaluation_in_small_asks_as_many_prompts_as_a_few_seconds_allow(
    recipe: Callable[..., Path], seconds: float, asked: int
) -> None:
    file = recipe(
        "evaluate.prompts = 20",
        method="evaluate",
        sources='prompts = { prompts = "demos.jsonl", held_out = 0.5 }\ngold = { reward = "function:reviews-gold" }',
    )
    runs = file.parent / "runs"
    plan = make_plan(file, runs=runs)
    desk, _ = desk_for(plan, runs, offline=True)
    needs = found_of(file)
    told = replace(needs, stages=[one | {"seconds": seconds} for one in needs.stages])

    small = smoke.small_plan(desk, told, smoke.emptied(runs))

    assert small.stage("one").settings.prompts == asked
    assert small.sources["prompts"].options.rows >= 2 * asked


def test_what_is_attainable_takes_its_time_in_the_estimate(recipe: Callable[..., Path]) -> None:
    sources = 'prompts = { prompts = "demos.jsonl", held_out = 0.5 }\ngold = { reward = "function:reviews-gold" }'
    plain, with_pool = (
        found_of(recipe(f"evaluate = {{ prompts = 8{more} }}", method="evaluate", sources=sources)).stages[0]["seconds"]
        for more in ("", ", ceiling = { samples = 4096 }")
    )

    assert with_pool > 2 * plain


def test_what_is_wrong_with_several_stages_is_told_once() -> None:
    said = [
        Problem("the tokenizer is gone", "stage 'one', FOLDER", "add it"),
        Problem("the tokenizer is gone", "stage 'two', FOLDER", "add it"),
        Problem("too large", "stage 'two'", "take less"),
        Problem("no disk", "FOLDER", "free some"),
    ]

    assert [str(one) for one in preflights.together(said)] == [
        "stages 'one' and 'two', FOLDER: the tokenizer is gone; add it",
        "stage 'two': too large; take less",
        "FOLDER: no disk; free some",
    ]


def test_a_run_that_would_only_fail_again_is_not_told_to_go_on(recipe: Callable[..., Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["recipe", "--inline", str(recipe("max_length = 3")), "--runs", str(tmp_path / "runs")]
    )

    assert result.exit_code == 2
    assert "go on with" not in result.output
    assert result.stderr.endswith("or raise max_lost (0.05)\n")


def test_a_gguf_file_is_checked_without_a_bar(recipe: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    write_gguf(Policy(name="p", fingerprint="0", path=tmp_path / "model"), tmp_path / "tiny.gguf")
    file = recipe("lora = { rank = 2 }")
    file.write_text(file.read_text().replace('"model"', '"tiny.gguf"'))

    result = checked(file, "--runs", tmp_path / "runs", "--offline")

    assert (result.exit_code, result.stderr) == (0, "")


DISK = """
result = ["full", "whole", "scores"]
[stage.full]
method = "sft"
inputs.policy = "base"
sft.epochs = 1
[stage.adapter]
method = "sft"
inputs.policy = "base"
lora = { rank = 4 }
sft.epochs = 1
[stage.whole]
method = "dpo"
inputs.policy = "adapter"
lora = { rank = 4 }
[stage.scores]
method = "reward"
inputs.policy = "adapter"
lora = { rank = 4 }
"""


@pytest.mark.slow
def test_the_disk_that_stages_take_is_told_within_a_tenth(recipe: Callable[..., Path], tmp_path: Path) -> None:
    pairs = [{"prompt": f"the food {n}", "chosen": " was good", "rejected": " was bad"} for n in range(40)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    sources = 'pairs = { preferences = "p.jsonl" }'
    file = recipe(sources=sources)
    result, _, stages = DISK.lstrip().partition("\n")
    file.write_text(result + "\n" + file.read_text().partition("[stage.one]")[0] + stages)

    told = {one["stage"]: one["disk"] for one in found_of(file).stages}
    made = run_recipe(file, runs=tmp_path / "runs", inline=True).stages

    taken = {one.name: sum(f.stat().st_size for f in one.folder.rglob("*") if f.is_file()) for one in made}
    assert told == {name: pytest.approx(size, rel=0.1) for name, size in taken.items()}


def test_a_length_that_cuts_the_recipes_own_answers_is_told(recipe: Callable[..., Path], tmp_path: Path) -> None:
    long = [{"prompt": f"the food {n}", "completion": " was good and good and good"} for n in range(60)]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    (tmp_path / "asks.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in long))
    write_tiny_reward(tmp_path / "judge")
    sources = 'asks = { prompts = "asks.jsonl" }\nrm = { reward = "judge/reward" }\n[stage.taught]\nmethod = "sft"'

    short = found_of(recipe("grpo.generation.max_new_tokens = 4", method="grpo", sources=sources))
    unset = found_of(recipe(method="grpo", sources=sources))

    assert [str(remark) for remark in short.remarks if "cut" in remark.problem] == [
        "stage 'one': 60 of 60 answers of the recipe's own rows are longer than generation.max_new_tokens (4), so that "
        "such answers would be cut; the middle one has 7 tokens; --set one.grpo.generation.max_new_tokens=16"
    ]
    assert [remark for remark in unset.remarks if "cut" in remark.problem] == []


def test_what_depends_on_the_architecture_is_refused_before_the_first_stage(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    config = OpenAIGPTConfig(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    for file in (tmp_path / "model").glob("*.safetensors"):
        file.unlink()
    OpenAIGPTLMHeadModel(config).save_pretrained(tmp_path / "model")
    (tmp_path / "asks.jsonl").write_text("".join(json.dumps({"prompt": f"the food {n}"}) + "\n" for n in range(60)))
    write_tiny_reward(tmp_path / "judge")
    sources = 'asks = { prompts = "asks.jsonl" }\nrm = { reward = "judge/reward" }\n[stage.taught]\nmethod = "sft"'
    file = recipe('ppo.layout = "frozen"', "ppo.trained_layers = 1", method="ppo", sources=sources)

    with pytest.raises(RecipeError) as caught:
        run_recipe(file, runs=tmp_path / "runs", offline=True, inline=True)

    assert str(caught.value) == (
        "stage 'one', trained_layers: an OpenAIGPTLMHeadModel cannot be cut into frozen and trained layers; let all "
        "weights learn"
    )
    assert list((tmp_path / "runs" / "stages").glob("taught-*")) == []
