"""Do models of sums think first, does it help, and is it the schoolbook's thought? Writes thoughts.csv.

    python experiments/2026-11-grpo/thoughts.py RUNS        the runs that train_all.py made

The 200 held-out problems, the likeliest token each time; "made to" begins each answer with <think>.
"""

import csv
import sys
from pathlib import Path

import torch

from scratchlm.generate.engine import Engine
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.posttrain.held_out import VALID_SEED
from scratchlm.posttrain.rollout import ask
from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.tokenizer.chat import ChatTemplate
from scratchlm.train.folder import load_run

HERE = Path(__file__).parent
NUM_PROBLEMS, MOST_TOKENS, SLOTS = 200, 64, 64
THINK = "<think>"


@torch.no_grad()
def answers(path: Path, prompts: list[str], beginning: str) -> list[str]:
    """What a run answers, the given beginning included."""
    run = load_run(path, device="cpu")
    template, sampling = (
        ChatTemplate(run.tokenizer),
        SamplingConfig(temperature=0, max_new_tokens=MOST_TOKENS),
    )
    begun = run.tokenizer.encode_ordinary(beginning)
    requests = [
        ask(template.render([{"role": "user", "content": prompt}]) + begun, template, sampling, n=1)
        for prompt in prompts
    ]
    results = Engine(run.model, run.tokenizer, slots=SLOTS).run(requests)
    return [beginning + result.choices[0].text for result in results]


def main() -> None:
    exercise = EXERCISES.build("arithmetic")
    problems = exercise.problems(VALID_SEED, "valid", 0, NUM_PROBLEMS)
    prompts = [problem.prompt for problem in problems]
    rows = []
    for seed in (1, 2, 3):
        for stage, beginning in (("sft", ""), ("sft", THINK), ("grpo", "")):
            found = answers(Path(sys.argv[1]) / f"sums-{stage}-{seed}", prompts, beginning)
            pairs = list(zip(found, problems, strict=True))
            shares = {
                "right": sum(exercise.check(text, problem.answer).correct for text, problem in pairs),
                "thinks": sum(text.startswith(THINK) for text in found),
                "as_the_schoolbook": sum(text == problem.response for text, problem in pairs),
            }
            asked = {"seed": seed, "after": stage, "made_to_think": bool(beginning)}
            rows.append(asked | {name: number / NUM_PROBLEMS for name, number in shares.items()})
            print(rows[-1], flush=True)
    with (HERE / "thoughts.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
