"""Commands that use what a kept run has made."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkit.cli import completion
from alignkit.cli.options import RUNS, options
from alignkit.errors import RecipeError
from alignkit.text import plain, short

if TYPE_CHECKING:
    from alignkit.store.runs import KeptRun
    from alignkit.use.run_rewards import OpenReward

RUN_POLICY = click.argument("name", metavar="RUN[:STAGE]", shell_complete=completion.runs)
LONGEST = click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Cut answers after so many tokens; unset: as long as those were that taught the policy.",
)
TEMPERATURE = click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Divides the logits; 0: the likeliest token each time.",
)
DRAWN_BY = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draws.")


def quieten(*, offline: bool = True) -> None:
    """Show nothing of what libraries tell while they open models, and open no connection unless that is meant."""
    from alignkit.environment import set_environment

    set_environment(offline)
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    set_verbosity_error()  # type: ignore[no-untyped-call]


@click.command()
@RUN_POLICY
@click.option("--vs", "other", metavar="STAGE", help="Ask this stage's policy, too, and show rewards beside answers.")
@TEMPERATURE
@options(LONGEST, DRAWN_BY)
@click.option(
    "--save",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("preferences.jsonl"),
    show_default=True,
    help="Where /save appends preferences.",
)
@RUNS
def chat(
    name: str, other: str | None, temperature: float, max_new_tokens: int | None, seed: int, file: Path, runs: Path
) -> None:
    """Talk to a policy of RUN, by default to the last one that it has made, in the form that the policy has learnt
    from: a chat, or plain text, where each line stands by itself. In a pipe each line is a prompt."""
    quieten()
    from alignkit.training.speaking import Manner, open_speaker
    from alignkit.use.conversation import AskedPolicy, Conversation
    from alignkit.use.run_policy import find_policy, policy_of

    first = find_policy(name, runs)
    chosen = [first, policy_of(first.run, other)] if other else [first]
    rewards = opened_rewards(first.run) if other else []
    asked = [AskedPolicy(one.stage.name, open_speaker(one.policy, one.form)) for one in chosen]
    as_what = "as a chat" if first.form == "chat" else "as plain text, each line by itself"
    click.echo(f"{first.name}, asked {as_what}; /help lists commands", err=True)
    manner = Manner(max_new_tokens, temperature, seed)
    Conversation(asked, rewards, manner, file).hold()


@click.command()
@RUN_POLICY
@click.argument("prompts")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="OUT.jsonl",
    help="Where answers are written; the same command goes on with it.",
)
@click.option("--answers", type=click.IntRange(min=1), default=1, show_default=True, help="To each prompt.")
@click.option("--greedy", is_flag=True, help="Take the likeliest token each time.")
@TEMPERATURE
@options(LONGEST, DRAWN_BY)
@click.option("--score", is_flag=True, help="Add the scores of the run's rewards.")
@RUNS
def generate(name: str, prompts: str, file: Path, **words: Any) -> None:
    """Answer PROMPTS, a file of any format that sources read, with a policy of RUN, by default the last one that it
    has made. The rows of OUT.jsonl can be read as demonstrations."""
    quieten()
    from alignkit.training.speaking import Manner, open_speaker
    from alignkit.use.answer_file import AnswerFile, read_prompts
    from alignkit.use.run_policy import find_policy
    from alignkit.use.run_rewards import columns_kept

    if words["greedy"] and words["answers"] > 1:
        raise RecipeError("greedy answers to one prompt are all the same", "--answers", "leave out one of the two")
    found = find_policy(name, words["runs"])
    rows = read_prompts(prompts, columns_kept(found.run))
    rewards = opened_rewards(found.run) if words["score"] else []
    manner = Manner(words["max_new_tokens"], 0.0 if words["greedy"] else words["temperature"], words["seed"])
    by = f"{found.stage.name} {found.stage.facts['artifact']['content'][:12]}"
    asked = AnswerFile(open_speaker(found.policy, found.form), rewards, manner, words["answers"], by)
    of = len(rows) * words["answers"]
    for done in asked.write(file, rows):
        click.echo(f"{done} of {of} answers", err=True)
    click.echo(f"answers: {short(file, Path.cwd())}")


def opened_rewards(run: "KeptRun") -> "list[OpenReward]":
    """Open a run's rewards, and tell which cannot be opened."""
    from alignkit.use.run_rewards import ClosedReward, OpenReward, rewards_of

    rewards = list(rewards_of(run))
    for one in rewards:
        if isinstance(one, ClosedReward):
            click.echo(plain(f"the reward {one.name} cannot be opened: {one.reason}"), err=True)
    return [one for one in rewards if isinstance(one, OpenReward)]


@click.command()
@RUN_POLICY
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--adapter", is_flag=True, help="Keep a LoRA adapter as one, where others can find its base.")
@click.option("--gguf", is_flag=True, help="Also write model.gguf, with llama.cpp's converter.")
@click.option("--ollama", is_flag=True, help="Also write a Modelfile, for: ollama create NAME -f DIR/Modelfile")
@click.option("--push", "hub_name", metavar="NAME", help="Also upload it to the hub; a new repository is private.")
@RUNS
def export(name: str, folder: Path, adapter: bool, gguf: bool, ollama: bool, hub_name: str | None, runs: Path) -> None:
    """Write a policy of RUN, by default the last one that it has made, into DIR, which is new or empty: merged weights,
    tokenizer, and a model card with its lineage, figures and recipe."""
    if adapter and (gguf or ollama):
        raise RecipeError("only full weights can be converted", "--adapter", "leave out one of the two")
    quieten(offline=hub_name is None)
    from alignkit.use.export import Takeaway, take_away
    from alignkit.use.run_policy import find_policy

    written = take_away(find_policy(name, runs), folder, Takeaway(adapter, gguf, ollama))
    click.echo(f"exported: {short(written, Path.cwd())}")
    if hub_name:
        from huggingface_hub import HfApi

        from alignkit.use.export import push

        push(folder, hub_name, HfApi())
        click.echo(f"uploaded: {hub_name}")
