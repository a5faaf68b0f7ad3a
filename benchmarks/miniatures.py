"""How long it takes to try a recipe's stages on a miniature of its model, for each architecture; the bar is 3 seconds.

    OMP_WAIT_POLICY=passive python benchmarks/miniatures.py [NAME ...]

All of a model: how it reads and decodes, and a step of SFT, reward, DPO, PPO in each layout and GRPO.
"""

import argparse
import logging
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from alignkit_dpo import DPOSettings, dpo
from architectures import ARCHITECTURES

from alignkit.estimate.trial import Uses, tried
from alignkit.methods.grpo import GRPOSettings, grpo
from alignkit.methods.ppo import PPOSettings, ppo
from alignkit.methods.reward import RewardSettings, reward
from alignkit.methods.sft import SFTSettings, sft

USES = {
    "sft": Uses.of(sft.needs(SFTSettings())),
    "reward": Uses.of(reward.needs(RewardSettings())),
    "dpo": Uses.of(dpo.needs(DPOSettings())),
    "ppo": Uses.of(ppo.needs(PPOSettings())),
    "ppo, shared": Uses.of(ppo.needs(PPOSettings(layout="shared"))),
    "ppo, frozen": Uses.of(ppo.needs(PPOSettings(layout="frozen"))),
    "grpo": Uses.of(grpo.needs(GRPOSettings())),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of an architecture (default: all)")
    words = parser.parse_args()
    if unknown := [name for name in words.names if name not in ARCHITECTURES]:
        parser.error(f"no architecture {unknown[0]!r}; there are: {', '.join(ARCHITECTURES)}")
    warnings.simplefilter("ignore")
    quiet: Any = transformers_logging  # untyped
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    logging.disable(logging.WARNING)
    whole: list[float] = []
    tried(AutoConfig.for_model("llama", hidden_size=128), USES["sft"], Path("warm"))
    for name in words.names or ARCHITECTURES:
        kind, more = ARCHITECTURES[name]
        config, each = AutoConfig.for_model(kind, **more), dict[str, float]()
        for use, how in USES.items():
            began = time.perf_counter()
            tried(config, how, Path(name))
            each[use] = time.perf_counter() - began
        whole.append(sum(each.values()))
        print(f"{name:24} {whole[-1]:5.2f} s  " + "  ".join(f"{use} {took:.2f}" for use, took in each.items()))
    print(f"all of a model: median {statistics.median(whole):.2f} s, longest {max(whole):.2f} s")


if __name__ == "__main__":
    main()
