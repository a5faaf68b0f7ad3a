"""CLM, SFT and reward by their effect on a tiny model."""

from alignkit.contract.kinds import Demonstrations, Preferences, Text
from alignkit.contract.settings import LoRA, Optimisation
from alignkit.methods.clm import CLMSettings, clm
from alignkit.methods.reward import RewardSettings, reward
from alignkit.methods.sft import SFTSettings, sft

PLAIN = Optimisation()


def texts(count):
    return [{"text": f"the food was good and we liked it, day {i % 7} was warm"} for i in range(count)]


def asked(count):
    return [{"prompt": f"how was day {i % 9}?", "completion": f" fine thanks, {i % 9} was lovely"} for i in range(count)]


def pairs(count):
    return [
        {"prompt": f"how was the food {i % 9}?", "chosen": " it was good", "rejected": " it was bad"} for i in range(count)
    ]


def test_reading_text_lowers_its_perplexity(policy, records, stage):
    settings = CLMSettings(learning_rate=1e-2, batch=8, max_length=32, epochs=4)

    clm(settings, stage, policy=policy, corpus=records(Text, texts(100), texts(7)))

    before, after, _ = stage.figures["perplexity"]
    assert after < before / 10


def test_demonstrations_lower_the_perplexity_of_answers(policy, records, stage):
    settings = SFTSettings(learning_rate=1e-2, batch=8, epochs=4)

    sft(settings, stage, policy=policy, demos=records(Demonstrations, asked(100), asked(9)))

    before, after, _ = stage.figures["perplexity"]
    assert after < before / 10


def test_a_reward_model_learns_which_answer_is_preferred(policy, records, stage):
    settings = RewardSettings(learning_rate=3e-3, batch=8, epochs=2)

    reward(settings, stage, policy=policy, pairs=records(Preferences, pairs(100), pairs(40)))

    assert stage.figures["accuracy"][1] == 1.0


def test_lora(policy, records, stage):
    settings = RewardSettings(learning_rate=3e-3, batch=8, epochs=2, lora=LoRA(rank=4))

    reward(settings, stage, policy=policy, pairs=records(Preferences, pairs(100), pairs(40)))

    assert stage.figures["accuracy"][1] == 1.0
    print(stage.logs[0], stage.samples)
