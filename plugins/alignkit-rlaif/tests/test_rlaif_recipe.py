"""In recipes: the packaged one plans either way, judges that rate are rewards, and one process of several asks."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import alignkit_rlaif
import pytest
from alignkit_rlaif import critique, rlaif, self_rlaif
from loopback import says, serving

import alignkit
import alignkit.http
import alignkit.kit
from alignkit import Answer, Judge, JudgeReward, Method, Policy, Preferences, Prompts, RecipeError
from alignkit.testing import RecordingStage, run_method, write_records


def plan(*words: str) -> str:
    told = subprocess.run(
        [sys.executable, "-m", "alignkit", "plan", "rlaif", *words], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    return " ".join(told.stdout.split())


def test_the_packaged_recipe_needs_no_reward_model_for_dpo(tmp_path: Path) -> None:
    told = plan("--runs", str(tmp_path))

    assert "prefer rlaif will run Preferences policy=finetune prompts=prompts judge=critic" in told
    assert "reward reward not needed align dpo will run Policy policy=finetune pairs=prefer" in told


def test_the_packaged_recipe_takes_ppo_by_one_word(tmp_path: Path) -> None:
    told = plan("--runs", str(tmp_path), "--set", "align.method=ppo")

    assert "reward reward will run RewardModel policy=finetune pairs=prefer" in told
    assert "align ppo will run Policy policy=finetune rewards=reward prompts=prompts" in told


KEYED = """
[sources]
base = {{ policy = "builtin:tiny" }}
asked = {{ prompts = "builtin:reviews" }}
texts = {{ text = "builtin:reviews" }}
critic = {{ {0}, url = "http://127.0.0.1:9/v1", key_env = "NO_SUCH_KEY" }}
[stage.before]
method = "clm"
[stage.after]
method = "{1}"
"""


@pytest.mark.parametrize("lines", [('judge = "openai:m"', "rlaif"), ('reward = "judge:openai:m"', "grpo")])
def test_a_key_that_is_missing_is_told_before_the_first_stage(lines: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(KEYED.format(*lines))

    with pytest.raises(RecipeError) as refused:
        alignkit.run_recipe(tmp_path / "r.toml", runs=tmp_path / "runs", inline=True)

    problem = "sources.critic.key_env: the environment variable NO_SUCH_KEY is not set"
    assert str(refused.value) == f"{problem}; set it to the key of http://127.0.0.1:9/v1"
    assert not (tmp_path / "runs" / "stages").exists()


def reward_of(address: str, path: Path, **options: Any) -> JudgeReward:
    judge = Judge(name="critic", fingerprint="0", path=path, address=address, options=options)
    return JudgeReward(name="critic", fingerprint="0", path=path, judge=judge)


def test_an_endpoint_that_rates_is_a_reward_and_is_asked_once(tmp_path: Path) -> None:
    def grade(body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][0]["content"]
        return says("9" if "[Reply]\ngood" in text else "1" if "[Reply]\nbad" in text else "hm")

    answers = [Answer("Why?", text, True) for text in ("good", "odd", "bad", "good")]
    with serving(grade) as server:
        reward = reward_of("openai:m", tmp_path, url=server.url)
        first, again = (RecordingStage(tmp_path).open_reward(reward)(answers) for _ in range(2))

    assert first == again == [1.0, pytest.approx(1 / 3), -1.0, 1.0]
    assert len(server.asked) == 3


def test_a_policy_that_rates_is_a_reward(alignkit_tiny_policy: Policy, alignkit_stage: RecordingStage) -> None:
    answers = [Answer("my room", text, True) for text in ("warm", "cold")]

    reward = reward_of("policy:tiny", alignkit_tiny_policy.path, principles=["Be kind."])
    scores = alignkit_stage.open_reward(reward)(answers)

    assert all(-1 < score < 1 for score in scores)


@pytest.mark.parametrize("method", [rlaif, self_rlaif, critique], ids=lambda method: method.name)
def test_of_several_processes_only_the_first_asks(tmp_path: Path, method: Method) -> None:
    missing = Judge(name="critic", fingerprint="0", path=tmp_path, address="openai:m")
    given = {
        "policy": Policy(name="none", fingerprint="0", path=tmp_path),
        "prompts": write_records(Prompts, tmp_path, [{"prompt": "a"}]),
        **({"judge": missing} if "judge" in method.consumes else {}),
    }

    made = run_method(method, {}, RecordingStage(tmp_path / "stage", rank=1, world=2), **given)

    assert isinstance(made, Preferences)


def test_what_was_asked_and_repeated_is_told(tmp_path: Path, alignkit_tiny_policy: Policy) -> None:
    prompts = write_records(
        Prompts, tmp_path, [{"prompt": f"the food {word}"} for word in ("was", "good", "bad", "we")]
    )
    stage = RecordingStage(tmp_path / "stage")
    lengths = iter(range(1, 10_000))
    with serving(lambda body: says("AB"[next(lengths) % 2])) as server:
        judge = Judge(name="critic", fingerprint="0", path=tmp_path, address="openai:m",
                      options={"url": server.url, "limits": {"concurrency": 1}})  # fmt: skip
        given = {"policy": alignkit_tiny_policy, "prompts": prompts, "judge": judge}
        run_method(rlaif, {"max_new_tokens": 240, "pairs": "all"}, stage, **given)

    assert stage.results["requests"][1] == len(server.asked)
    assert stage.results["tokens"][1] == 10 * len(server.asked)
    assert all(rlaif.tells(figure, {}) for figure in stage.results)


def test_it_imports_what_alignkit_exports_and_nothing_else() -> None:
    found = set[str]()
    for file in Path(alignkit_rlaif.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "alignkit":
                found |= {f"{node.module}.{name.name}" for name in node.names}

    public = [
        f"{module.__name__}.{name}" for module in (alignkit, alignkit.http, alignkit.kit) for name in module.__all__
    ]
    assert found <= set(public)
