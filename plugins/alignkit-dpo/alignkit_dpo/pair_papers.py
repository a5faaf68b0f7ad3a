"""The papers of the methods that learn from pairs, and the settings that make a method each paper's."""

from alignkit import Paper

APO = "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment"
HERE = "the pairs are given, not sampled from the policy in rounds"

DPO_PAPERS = (
    Paper("dpo", "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", "arXiv 2305.18290"),
    Paper(
        "cdpo",
        "A note on DPO with noisy preferences & relationship to IPO",
        "https://ericmitchell.ai/cdpo.pdf",
        {"label_smoothing": 0.1},
    ),
    Paper(
        "ipo",
        "A General Theoretical Paradigm to Understand Learning from Human Preferences",
        "arXiv 2310.12036",
        {"loss": "ipo"},
        differs="gains are divided by the tokens of their answers, as its authors advise",
    ),
    Paper(
        "rso",
        "Statistical Rejection Sampling Improves Preference Optimization",
        "arXiv 2309.06657",
        {"loss": "hinge", "beta": 0.05},
        differs="of its losses hinge-norm; the pairs are given, not sampled by rejection",
    ),
    Paper(
        "rdpo",
        "Provably Robust DPO: Aligning Language Models with Noisy Feedback",
        "arXiv 2403.00409",
        {"loss": "robust", "label_smoothing": 0.1},
    ),
    Paper(
        "exo",
        "Towards Efficient Exact Optimization of Language Model Alignment",
        "arXiv 2402.00856",
        {"loss": "exo", "label_smoothing": 1e-3},
        differs="of its two forms the one for pairs",
    ),
    Paper(
        "discopop",
        "Discovering Preference Optimization Algorithms with and for Large Language Models",
        "arXiv 2406.08414",
        {"loss": "discopop", "beta": 0.05},
    ),
    Paper(
        "gpo",
        "Generalized Preference Optimization: A Unified Approach to Offline Alignment",
        "arXiv 2402.05749",
        {"loss": "exponential"},
        differs="of its convex losses sigmoid, hinge, ipo, exponential and squared-hinge (the truncated quadratic)",
    ),
    Paper(
        "aot",
        "Distributional Preference Alignment of LLMs via Optimal Transport",
        "arXiv 2406.05882",
        {"loss": "aot", "beta": 0.01},
        differs="of its two forms the paired one",
    ),
    Paper(
        "nca-pair",
        "Noise Contrastive Alignment of Language Models with Explicit Rewards",
        "arXiv 2402.05369",
        {"loss": "nca", "beta": 0.01},
        differs="of two answers with certain labels",
    ),
    Paper(
        "sppo",
        "Self-Play Preference Optimization for Language Model Alignment",
        "arXiv 2405.00675",
        {"loss": "sppo", "beta": 1e-3},
        differs=HERE,
    ),
    Paper(
        "apo-zero",
        APO,
        "arXiv 2408.06266",
        {"loss": "apo-zero"},
    ),
    Paper(
        "apo-down",
        APO,
        "arXiv 2408.06266",
        {"loss": "apo-down"},
    ),
    Paper(
        "mpo",
        "Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference Optimization",
        "arXiv 2411.10442",
        {"loss": {"sigmoid": 0.8, "bco": 0.2, "sft": 1.0}},
        differs="text alone, and the shift of its quality loss is 0",
    ),
    Paper(
        "irpo",
        "Iterative Reasoning Preference Optimization",
        "arXiv 2404.19733",
        {"loss": {"sigmoid": 1.0, "sft": 1.0}},
        differs=HERE,
    ),
    Paper(
        "tulu3-dpo",
        "Tulu 3: Pushing Frontiers in Open Language Model Post-Training",
        "arXiv 2411.15124",
        {"by_token": True, "beta": 5.0},
    ),
    Paper(
        "ld-dpo",
        "Length Desensitization in Direct Preference Optimization",
        "arXiv 2409.06411",
        {"tail": 0.5},
    ),
    Paper(
        "r-dpo",
        "Disentangling Length from Quality in Direct Preference Optimization",
        "arXiv 2403.19159",
        {"length_penalty": 0.01},
    ),
    Paper(
        "wpo",
        "WPO: Enhancing RLHF with Weighted Preference Optimization",
        "arXiv 2406.11827",
        {"weighted": True, "beta": 0.01},
        differs="weights are not aligned to the policy's certainty in each context",
    ),
    Paper(
        "dpop",
        "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
        "arXiv 2402.13228",
        {"keep_chosen": 50.0, "beta": 0.3},
    ),
    Paper(
        "f-dpo",
        "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints",
        "arXiv 2309.16240",
        {"divergence": "js"},
    ),
)

SIMPO_PAPERS = (
    Paper("simpo", "SimPO: Simple Preference Optimization with a Reference-Free Reward", "arXiv 2405.14734"),
    Paper(
        "alphapo",
        "AlphaPO: Reward Shape Matters for LLM Alignment",
        "arXiv 2501.03884",
        {"alpha": 0.25, "beta": 2.5, "gamma": 0.1},
    ),
    Paper(
        "cpo-simpo",
        "The joint of Contrastive Preference Optimization (CPO) & Simple Preference Optimization (SimPO)",
        "https://github.com/fe1ixxu/CPO_SIMPO",
        {"beta": 10.0, "gamma": 5.4, "sft": 0.05},
    ),
)

ORPO_PAPERS = (Paper("orpo", "ORPO: Monolithic Preference Optimization without Reference Model", "arXiv 2403.07691"),)

CPO_PAPERS = (
    Paper(
        "cpo",
        "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
        "arXiv 2401.08417",
    ),
    Paper(
        "slic-hf",
        "SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
        "arXiv 2305.10425",
        {"loss": "hinge"},
        differs="the likelihood is that of the chosen answers, by token, not of a set of its own",
    ),
)
