"""The papers that `grpo` is of, each a preset: what it sets is the paper's, all else stays as in the recipe."""

from typing import Any

from alignkit.contract.paper import Paper

FREE = {"coef": 0.0}
"""No pull to the start."""
DAPO: dict[str, Any] = {
    "clip": 0.2,
    "clip_high": 0.28,
    "scale": "group",
    "average": "token",
    "kl": FREE,
    "dynamic_sampling": 10,
    "generation": {"unfinished": "subtract", "penalty": 1.0, "overlong": 0.2},
}
FOUR_STEPS = {"epochs": 1, "minibatches": 4}
"""Each answer is learnt from once, in one of four steps."""
GSPO: dict[str, Any] = {"clip": 3e-4, "clip_high": 4e-4, "average": "answer", "kl": FREE}
CISPO: dict[str, Any] = {"surrogate": "weights", "clip": 1.0, "clip_high": 4.0, "average": "token", "kl": FREE}
TOPR: dict[str, Any] = {
    "surrogate": "tapered",
    "ratio": "sequence",
    "baseline": "none",
    "scale": "none",
    "average": "fixed",
    "kl": FREE,
}

GROUP_PAPERS = (
    Paper(
        "grpo",
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        "arXiv 2402.03300",
        {
            "scale": "group",
            "average": "answer",
            "kl": {"coef": 0.04, "corrected": False},
            "epochs": 1,
            "minibatches": 1,
        },
        "rewards of steps, and a reward model that is trained on, are left out",
    ),
    Paper(
        "dapo",
        "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
        "arXiv 2503.14476",
        DAPO,
        "prompts are exchanged in 10 rounds at most, then the update is taken as it is",
    ),
    Paper(
        "overlong-filtering",
        "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
        "arXiv 2503.14476",
        {"generation": {"unfinished": "mask"}},
        "this part of it alone",
    ),
    Paper(
        "clip-higher",
        "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
        "arXiv 2503.14476",
        {"clip": 0.2, "clip_high": 0.28},
        "this part of it alone",
    ),
    Paper(
        "dr-grpo",
        "Understanding R1-Zero-Like Training: A Critical Perspective",
        "arXiv 2503.20783",
        {"scale": "none", "average": "fixed", "kl": FREE},
    ),
    Paper(
        "gspo",
        "Group Sequence Policy Optimization",
        "arXiv 2507.18071",
        {"ratio": "sequence", **GSPO, **FOUR_STEPS},
    ),
    Paper(
        "gspo-token",
        "Group Sequence Policy Optimization",
        "arXiv 2507.18071",
        {"ratio": "sequence-token", **GSPO, **FOUR_STEPS},
        "advantages are equal within an answer unless kl.term or uncertain tells its tokens apart",
    ),
    Paper(
        "luspo",
        "Length-Unbiased Sequence Policy Optimization: Revealing and Controlling Response Length Variation in RLVR",
        "arXiv 2602.05261",
        {"ratio": "sequence", **GSPO, "clip": 2e-3, "clip_high": 2.5e-3, "average": "fixed"},
        "the loss is divided by the most tokens of an answer, which is constant",
    ),
    Paper(
        "cispo",
        "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
        "arXiv 2506.13585",
        CISPO,
        "its bound of weights is not told; 5 is that of arXiv 2510.13786",
    ),
    Paper(
        "scalerl",
        "The Art of Scaling Reinforcement Learning Compute for LLMs",
        "arXiv 2510.13786",
        {**CISPO, "scale": "batch"},
        "losses are averaged over tokens, not by prompt; prompts that teach nothing or are always solved stay; long "
        "answers are cut, and not told to end; sampling does not run beside learning",
    ),
    Paper(
        "topr",
        "Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs",
        "arXiv 2503.14286",
        TOPR,
        "the ratio of an answer is the geometric mean of those of its tokens, not their product; bad answers are those "
        "that score below 0",
    ),
    Paper(
        "gmpo",
        "Geometric-Mean Policy Optimization",
        "arXiv 2507.20673",
        {"surrogate": "geometric", "clip": 0.33, "clip_high": 0.49, "average": "answer", "kl": FREE},
        "its clip from exp(-0.4) to exp(0.4) is written as shares",
    ),
    Paper(
        "sapo",
        "Soft Adaptive Policy Optimization",
        "arXiv 2511.20347",
        {"surrogate": "gate", "scale": "group", "average": "answer", "kl": FREE},
    ),
    Paper(
        "dual-clip",
        "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning",
        "arXiv 1912.09729",
        {"dual_clip": 3.0},
        "the clip alone; there the policy has a critic",
    ),
    Paper(
        "intellect-2",
        "INTELLECT-2: A Reasoning Model Trained Through Globally Decentralized Reinforcement Learning",
        "arXiv 2505.07291",
        {"dual_clip": 4.0},
        "the two-sided clip alone",
    ),
    Paper(
        "80-20",
        "Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning",
        "arXiv 2506.01939",
        {**DAPO, "uncertain": 0.2},
        "the tokens of highest entropy are those of the update, by the policy that sampled them",
    ),
    Paper(
        "liteppo",
        "Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning",
        "arXiv 2508.08221",
        {"scale": "batch", "average": "token", "kl": FREE},
        "answers are sampled from the whole distribution",
    ),
    Paper(
        "bnpo",
        "BNPO: Beta Normalization Policy Optimization",
        "arXiv 2506.02864",
        {"scale": "beta", "average": "token", "generation": {"unfinished": "subtract", "penalty": 0.0}},
        "several rewards are added up first, not normalised one by one; scores must lie between 0 and 1",
    ),
    Paper(
        "opo",
        "On-Policy RL with Optimal Reward Baseline",
        "arXiv 2505.23585",
        {"baseline": "length", "scale": "none", "kl": FREE, "epochs": 1, "minibatches": 1},
    ),
    Paper(
        "pass-at-k",
        "Pass@k Training for Adaptively Balancing Exploration and Exploitation of Large Reasoning Models",
        "arXiv 2508.10751",
        {"best_of": 4, "scale": "group"},
        "the paper varies k; scores need not be 0 and 1, a team counts as its best",
    ),
    Paper(
        "reinforce++",
        "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization",
        "arXiv 2501.03262",
        {"baseline": "none", "scale": "tokens", "average": "answer", "kl": {"term": "reward", "coef": 0.001}},
        "a prompt has two answers at least",
    ),
    Paper(
        "reinforce++-baseline",
        "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization",
        "arXiv 2501.03262",
        {"baseline": "group", "scale": "tokens", "average": "answer", "kl": {"term": "k2", "corrected": False}},
        "kl.coef is not the paper's",
    ),
    Paper(
        "deepseek-v3.2",
        "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models",
        "arXiv 2512.02556",
        {"kl": {"term": "k3", "corrected": True}},
        "the corrected pull alone; masks of answers and routes of experts are left out",
    ),
)
