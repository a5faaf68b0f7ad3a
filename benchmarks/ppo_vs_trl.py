"""Measure PPO's speed and memory against TRL 1.12.0's PPOTrainer, the last there was, on the same job.

    python benchmarks/ppo_vs_trl.py --trl TRL --model 30M --job ragged --repeats 5 --json ragged-30M.json

TRL is a folder that this TRL is installed into, apart from any other; it is made where it is missing. Both sides get
the same weights (policy, reward model, and a critic that starts as the reward model), prompts, sizes and learning
rate, and as many real optimiser steps: they are counted on both sides, and a difference is refused.

--model is 5M or 30M, generated here, a model's folder, or a GGUF file. Jobs:

  ragged  prompts of 4 to 64 tokens of the packaged reviews, each length as likely, and answers that end by themselves,
          after 28 tokens in the mean, with a wide spread, and after 64 at the latest (see made_models.py)
  fixed   prompts of 32 tokens and answers of 48, none of which ends

A repeat asks prompts of its own, the same ones in every update. In a repeat the sides run one after the other, each in
a new process that takes one update to warm up and then those that count; ratios are those of a repeat, so what else
the machine does weighs on both. Reported of each side:

  seconds   of an update, the median of those that count: everything but loading, the logging included
  generate  until the answers are there
  passes    log-probabilities, values, rewards and advantages
  learn     the epochs of optimiser steps
  processor seconds that all cores together worked on an update, which other work on the machine disturbs less
  memory    the peak while training, less what the process had after its imports (on a GPU: the peak allocated there)

TRL runs in its fastest fp32 setting (see trl_side.py). Ours runs in fp32 with the default settings of `ppo`, or in each
--layout in turn; --set changes a setting of ours, as in `--set kl.stop=0.1`, and --trl-set an argument of PPOConfig.
"""

import argparse
import json
import os
import platform
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from job import TRL, Job, Result, install_trl, run_side
from made_models import make_models, ragged_lengths, some_prompts
from transformers import AutoTokenizer

from alignkit import __version__

THEIRS = "TRL"
PHASES: Mapping[str, Callable[[Any], float]] = {
    "seconds": lambda update: update.seconds,
    "generate": lambda update: update.generate,
    "passes": lambda update: update.passes,
    "learn": lambda update: update.learn,
    "processor": lambda update: update.processor,
}


class Kind(NamedTuple):
    """What kind of job it is."""

    answer_tokens: float | None
    """Of the mean answer; None: none ends."""
    max_new_tokens: int
    prompt_tokens: int | None
    """None: 4 to 64."""


KINDS = {"ragged": Kind(28.0, 64, None), "fixed": Kind(None, 48, 32)}


def main() -> None:
    words = read_words()
    install_trl(words.trl)
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(words, Path(folder))
        found = run_all(words, jobs, Path(folder))
    facts = summary(words, jobs[0], found)
    print_summary(facts)
    if words.json:
        words.json.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def read_words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, required=True, help="folder of TRL 1.12.0; installed there if it is not")
    parser.add_argument("--model", default="5M", help="5M, 30M, a model's folder or a GGUF file (default 5M)")
    parser.add_argument("--job", choices=KINDS, default="ragged")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--updates", type=int, default=4, help="updates of a run that count (default 4)")
    parser.add_argument("--batch", type=int, default=16, help="answers in an update (default 16)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=1, help="optimiser steps in an epoch (default 1)")
    parser.add_argument("--layout", nargs="+", default=[], metavar="NAME", help="layouts of ours to run, each in turn")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of ours")
    parser.add_argument("--trl-set", action="append", default=[], metavar="KEY=VALUE", help="an argument of PPOConfig")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="OMP_NUM_THREADS of both (default: cores)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(words.threads)
    return words


def make_jobs(words: argparse.Namespace, folder: Path) -> list[Job]:
    """Make one job for each repeat: other prompts and another seed, the same models."""
    kind = KINDS[words.job]
    policy, reward, weights = make_models(words.model, kind.answer_tokens, folder)
    print(f"{words.model}: {weights / 1e6:.1f} million weights; {words.job} job", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(policy)

    def make(seed: int) -> Job:
        lengths = [kind.prompt_tokens] * words.batch if kind.prompt_tokens else ragged_lengths(words.batch, seed)
        return Job(
            policy=str(policy),
            reward=str(reward),
            prompts=some_prompts(lengths, tokenizer, seed),
            updates=words.updates + 1,
            batch=words.batch,
            epochs=words.epochs,
            minibatches=words.minibatches,
            max_new_tokens=kind.max_new_tokens,
            learning_rate=1e-6,
            kl_coef=0.05,
            seed=seed,
            ends=kind.answer_tokens is not None,
            ours=settings(words.set),
            trl=settings(words.trl_set),
        )

    return [make(seed) for seed in range(1, words.repeats + 1)]


def settings(given: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE as lines of a recipe; a word needs no quotes."""
    lines = []
    for word in given:
        key, _, value = word.partition("=")
        try:
            tomllib.loads(f"value = {value}")
        except tomllib.TOMLDecodeError:
            value = json.dumps(value)
        lines.append(f"{key} = {value}")
    return tomllib.loads("\n".join(lines))


def run_all(words: argparse.Namespace, jobs: Sequence[Job], folder: Path) -> dict[str, list[Result]]:
    """Run TRL and each layout of ours in turn, repeat by repeat."""
    layouts = words.layout or [""]
    found: dict[str, list[Result]] = {name: [] for name in [THEIRS, *map(our_name, layouts)]}
    for number, job in enumerate(jobs, start=1):
        theirs = run_side("trl_side.py", job, folder / "trl", words.trl)
        found[THEIRS].append(theirs)
        for layout in layouts:
            told = replace(job, ours=job.ours | {"layout": layout}) if layout else job
            ours = run_side("our_side.py", told, folder / "ours")
            check_steps(theirs, ours)
            found[our_name(layout)].append(ours)
        parts = (f"{name} {seconds_of(results[-1]):.2f} s" for name, results in found.items())
        print(f"repeat {number} of {len(jobs)}: {', '.join(parts)} an update", flush=True)
    return found


def our_name(layout: str) -> str:
    return f"alignkit, {layout}" if layout else "alignkit"


def check_steps(theirs: Result, ours: Result) -> None:
    if theirs.steps != ours.steps:
        raise SystemExit(f"not the same work: TRL took {theirs.steps} optimiser steps, alignkit {ours.steps}")


def seconds_of(result: Result, phase: str = "seconds") -> float:
    """Give the median of a run's updates, the first one dropped."""
    return median(PHASES[phase](update) for update in result.updates[1:])


def summary(words: argparse.Namespace, job: Job, found: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Put together what was measured, and every single update."""
    theirs = found[THEIRS]
    return {
        "job": words.job,
        "model": Path(words.model).name,
        "batch": job.batch,
        "epochs": job.epochs,
        "settings": job.ours,
        "trl settings": job.trl,
        "measured on": f"{machine()}, {words.threads} threads",
        "versions": {"alignkit": __version__, "trl": TRL, **found[THEIRS][0].versions},
        "optimiser steps of an update": theirs[0].steps[1] - theirs[0].steps[0],
        "sides": {name: side(results, theirs, job.batch) for name, results in found.items()},
        "runs": {name: [asdict(result) for result in results] for name, results in found.items()},
    }


def side(results: Sequence[Result], theirs: Sequence[Result], batch: int) -> dict[str, Any]:
    """Sum up one side, against TRL's runs of the same repeats."""
    pairs = list(zip(results, theirs, strict=True))
    phases = {phase: spread([seconds_of(result, phase) for result in results]) for phase in PHASES}
    return {
        "samples a second": spread([batch / seconds_of(result) for result in results]),
        **phases,
        "memory": spread([float(result.memory) for result in results]),
        "answer tokens": fmean(length for result in results for length in result.answered[1:]),
        "times TRL's speed": spread([seconds_of(their) / seconds_of(our) for our, their in pairs]),
        "times TRL's speed, by processor time": spread(
            [seconds_of(their, "processor") / seconds_of(our, "processor") for our, their in pairs]
        ),
        "share of TRL's memory": spread([our.memory / their.memory for our, their in pairs]),
        "optimisers": results[0].optimisers,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {os.cpu_count()} cores"


def print_summary(facts: Mapping[str, Any]) -> None:
    print(f"{facts['optimiser steps of an update']} optimiser steps an update on every side; {facts['measured on']}")
    heads = (
        "seconds",
        "generate",
        "passes",
        "learn",
        "processor",
        "samples/s",
        "memory, GB",
        "answers",
        "speed x",
        "memory x",
    )
    print(f"{'':24}" + "".join(f"{head:>12}" for head in heads))
    for name, told in facts["sides"].items():
        row = [told[phase]["median"] for phase in PHASES]
        row += [told["samples a second"]["median"], told["memory"]["median"] / 1e9, told["answer tokens"]]
        row += [told["times TRL's speed"]["median"], told["share of TRL's memory"]["median"]]
        print(f"{name:24}" + "".join(f"{value:12.2f}" for value in row))
    for name, told in list(facts["sides"].items())[1:]:
        speed, memory = told["times TRL's speed"], told["share of TRL's memory"]
        processor = told["times TRL's speed, by processor time"]
        print(
            f"{name}: {speed['median']:.2f} ({speed['min']:.2f}-{speed['max']:.2f}) times TRL's speed, "
            f"by processor time {processor['median']:.2f} ({processor['min']:.2f}-{processor['max']:.2f}); "
            f"{memory['median']:.2f} ({memory['min']:.2f}-{memory['max']:.2f}) of its memory"
        )


if __name__ == "__main__":
    main()
