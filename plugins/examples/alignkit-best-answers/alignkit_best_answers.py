"""Best answers: answer each prompt several times, and keep the answer that scores best as a demonstration."""

from alignkit import Demonstrations, Method, Policy, Prompts, Reward, Settings, Stage, hookimpl, method


class BestAnswersSettings(Settings):
    """Settings of `best-answers`."""

    answers: int = 8
    """Answers to each prompt, of which one is kept."""
    max_new_tokens: int = 64
    """Answers are cut after so many tokens."""


@method("best-answers")
def best_answers(
    settings: BestAnswersSettings, stage: Stage, *, policy: Policy, prompts: Prompts, reward: Reward
) -> Demonstrations:
    """Keep the best of several answers to each prompt, by a reward."""
    from alignkit.kit import load_policy, sample_answers

    model, tokenizer = load_policy(policy, trainable=False)
    score = stage.open_reward(reward)

    def best():
        wanted = {"answers": settings.answers, "max_new_tokens": settings.max_new_tokens, "seed": stage.seed}
        for held_out, rows in ((False, list(prompts.train())), (True, list(prompts.held_out()))):
            for row, answers in zip(rows, sample_answers(model, tokenizer, rows, **wanted), strict=True):
                scores = score(answers)
                stage.log(len(scores), None, {"best": max(scores), "mean": sum(scores) / len(scores)})
                chosen = answers[scores.index(max(scores))].text
                yield {"prompt": row["prompt"], "completion": chosen, "held_out": held_out}

    return stage.save_rows(Demonstrations, best())


@hookimpl
def alignkit_methods() -> list[Method]:
    return [best_answers]
