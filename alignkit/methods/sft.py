"""SFT: teach a policy to answer, by good answers.

Maximises the likelihood of the answers' tokens, given their prompts; prompts themselves are not learnt. Strings are
joined as they stand, chats are rendered by the model's template, and an answer ends with the token that ends it, so
that the policy learns to stop.
"""

from dataclasses import replace

from alignkit.contract.advice import Advice
from alignkit.contract.hookspecs import hookimpl
from alignkit.contract.kinds import Demonstrations, Policy
from alignkit.contract.method import Method, method
from alignkit.contract.needs import PackedNeeds, packed_needs
from alignkit.contract.paper import Paper
from alignkit.contract.row_settings import DemonstrationSettings
from alignkit.contract.stage import Stage


class SFTSettings(DemonstrationSettings):
    """Settings of `sft`."""


def needs(settings: SFTSettings) -> PackedNeeds:
    """Return what the loop will do with demonstrations."""
    return replace(packed_needs(settings), max_lost=settings.max_lost, learn=settings.learn, shown=settings.samples)


PAPERS = (
    Paper(
        "instructgpt",
        "Training language models to follow instructions with human feedback",
        "arXiv 2203.02155",
        {"epochs": 16.0, "optimisation": {"schedule": "cosine"}},
        "step 1; dropout is the model's own",
    ),
    Paper(
        "flan", "Finetuned Language Models Are Zero-Shot Learners", "arXiv 2109.01652", differs="rows are the user's"
    ),
)


@method(
    "sft",
    advice=Advice(
        "there are answers to imitate; most chains begin with it",
        "mistakes are imitated too, and after two or three epochs rows are known by heart: held-out perplexity rises",
    ),
    needs=needs,
    results=("perplexity", "perplexity/{demos}"),
    papers=PAPERS,
)
def sft(settings: SFTSettings, stage: Stage, *, policy: Policy, demos: Demonstrations) -> Policy:
    """Teach a policy to answer by demonstrations."""
    from alignkit.training.demonstrated import (
        read_demonstrations,
        save_taught,
        show_taught,
        taught_perplexity,
        tell_taught,
    )
    from alignkit.training.likelihood import train_language_model
    from alignkit.training.models import load_policy

    model, tokenizer = load_policy(policy, lora=settings.lora, precision=settings.precision)
    rows = read_demonstrations(demos, model, tokenizer, settings, stage)
    before = taught_perplexity(model, tokenizer, rows, settings)
    train_language_model(model, rows.train, stage, settings)
    made = save_taught(model, tokenizer, rows, stage)
    tell_taught(stage, before, taught_perplexity(model, tokenizer, rows, settings), rows)
    show_taught(model, tokenizer, rows, stage)
    return made


@hookimpl
def alignkit_methods() -> list[Method]:
    """Offer `sft`."""
    return [sft]
