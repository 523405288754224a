"""Questions scored per second with what their rows begin with computed once, and with each row by itself.

Multiple choice as the tasks ask it: solved questions (shots) in front, a question, four choices of several
tokens; random tokens, since only their number counts. The two take turns in one process; the greatest
difference between their log-probabilities is printed.

    shots 0, 5, 10; 70 tokens each, 50 of a question, 4 choices of 20      a model as large as the demo's

    python benchmarks/bench_shots.py [--threads N] [--rounds N] [--questions N]
"""

import argparse
import sys
import time
from functools import partial

import harness
import torch
from rich.console import Console

from scratchlm.evaluate import scoring
from scratchlm.evaluate.scoring import Pair, Score, score
from scratchlm.model import MODELS, ModelConfig

SHOT, QUESTION, CHOICE, CHOICES, ROOM, VOCABULARY = 70, 50, 20, 4, 1024, 1536
SHOTS = (0, 5, 10)


def pairs_of(shots: int, questions: int) -> list[Pair]:
    generator = torch.Generator().manual_seed(0)

    def draw(number: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (number,), generator=generator).tolist()

    solved = draw(1 + shots * SHOT)
    contexts = [[*solved, *draw(QUESTION)] for _ in range(questions)]
    return [Pair(context, draw(CHOICE)) for context in contexts for _ in range(CHOICES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape = {"d_model": 192, "num_layers": 3, "num_heads": 6, "context_length": ROOM}
    model = MODELS.build("transformer", ModelConfig(vocab_size=VOCABULARY, **shape)).eval()
    least = scoring.LEAST_SAVED
    said: dict[str, list[Score]] = {}

    def measure(name: str, saved: int, pairs: list[Pair]) -> float:
        scoring.LEAST_SAVED, started = saved, time.perf_counter()
        said[name] = score(model, pairs, context_length=ROOM, device=torch.device("cpu"))
        return arguments.questions / (time.perf_counter() - started)

    for shots in SHOTS:
        pairs = pairs_of(shots, arguments.questions)
        least_saved = {"each by itself": sys.maxsize, "beginnings once": least}
        sides = {name: partial(measure, name, saved, pairs) for name, saved in least_saved.items()}
        for run in sides.values():
            run()  # warm
        rates = harness.alternate(sides, rounds=arguments.rounds)
        one, two = said.values()
        apart = max(abs(a.logprob - b.logprob) for a, b in zip(one, two, strict=True))
        Console().print(f"{shots} shots: log-probabilities differ by at most {apart:.1e} nats")
        setup = {"shots": shots, "questions": arguments.questions, "threads": torch.get_num_threads()}
        harness.report("shots", "questions/s", rates, **setup)


if __name__ == "__main__":
    main()
