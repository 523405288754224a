"""Generated tokens per second on this machine's CPU: ours against Hugging Face `generate`, 1 text and 8.

Both sides get the same weights (interop/), the same prompts of 32 tokens and write 96 tokens each, greedily;
the tokens are compared. Then both once more by chance, at temperature 0.8 and top_p 0.95. Sides take turns in
one process. Without transformers its columns are left out.

    bound     copy rate / bytes that one step reads: every weight but the table of embeddings once, and the
              keys and values of the texts. The copy rate is measured in the same rounds on 256 MB, bytes read
              plus bytes written; a model that stays in the processor's cache may be faster than the bound.

    drawn       both by chance; the weights are random, so top_p keeps most of the vocabulary: the worst case
    choosing    tokens/s of drawing one for each of 8 rows alone: all at once (choosing.py) and row by row
    n of one    8 continuations of one prompt of 256 tokens, 16 tokens each: as one request and as eight

    "stories"   6 layers, d_model 256, 8 heads, 4 key heads, vocabulary 4096       24 MB
    "wide"      8 layers, d_model 512, 8 heads, 4 key heads, vocabulary 8192      113 MB

    python benchmarks/bench_generate.py [stories] [wide] [--threads N] [--rounds N]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import harness
import torch
from rich.console import Console

from scratchlm.generate import Engine, Request, SamplingConfig
from scratchlm.generate.choosing import Chooser, choose
from scratchlm.generate.runner import PlainRunner
from scratchlm.generate.sampling import sample
from scratchlm.model import MODELS, ModelConfig

PROMPT, NEW = 32, 96
COPIED = 256 * 2**20
DRAWN = {"temperature": 0.8, "top_p": 0.95}
SHAPES = {
    "stories": {"vocab_size": 4096, "d_model": 256, "num_layers": 6},
    "wide": {"vocab_size": 8192, "d_model": 512, "num_layers": 8},
}


def build(shape: str) -> torch.nn.Module:
    torch.manual_seed(0)
    settings = {"context_length": 512, "num_heads": 8, "num_kv_heads": 4, **SHAPES[shape]}
    return MODELS.build("transformer", ModelConfig(**settings)).eval()


def prompts(number: int, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocab_size, (number, PROMPT), generator=generator).tolist()


def ours(model: torch.nn.Module, number: int, *, plain: bool = False, drawn: bool = False) -> list[list[int]]:
    engine = Engine(model, None, slots=number, runner=PlainRunner(model, number) if plain else None)
    sampling = SamplingConfig(max_new_tokens=NEW, **(DRAWN if drawn else {"temperature": 0.0}))
    asked = prompts(number, model.config.vocab_size)
    results = engine.run([Request(prompt_ids=ids, sampling=sampling, stop_ids=()) for ids in asked])
    return [[token.token_id for token in result.choices[0].tokens] for result in results]


def exported(model: torch.nn.Module) -> torch.nn.Module | None:
    """The same model as a transformers.LlamaForCausalLM; None where transformers is missing."""
    if find_spec("transformers") is None:
        return None
    from transformers import LlamaConfig, LlamaForCausalLM

    from scratchlm.interop.hf_config import config_table
    from scratchlm.interop.names import to_huggingface
    from scratchlm.interop.weights import is_tied, kind_of, whole_weights

    kind = kind_of(model.config)
    table = config_table(kind, model.config, tied=is_tied(model), dtype="float32", end=None)
    theirs = LlamaForCausalLM(LlamaConfig(**table)).eval()
    weights = to_huggingface(kind, whole_weights(model), d_head=model.config.d_head)
    theirs.load_state_dict(weights, strict=True)
    return theirs


@torch.no_grad()
def hugging_face(theirs: torch.nn.Module, number: int, *, drawn: bool = False) -> list[list[int]]:
    ids = torch.tensor(prompts(number, theirs.config.vocab_size))
    choice = {"do_sample": True, "top_k": 0, **DRAWN} if drawn else {"do_sample": False}
    settings = {**choice, "max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}
    out = theirs.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=None, **settings)
    return out[:, PROMPT:].tolist()


def rate(work: Callable[[], list[list[int]]]) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        count = sum(map(len, work()))
        return count / (time.perf_counter() - start)

    return measure


def copy_rate(source: torch.Tensor, target: torch.Tensor) -> float:
    """Bytes per second, read and written."""
    start = time.perf_counter()
    target.copy_(source)
    return 2 * COPIED / (time.perf_counter() - start)


def bytes_of_a_step(model: torch.nn.Module, number: int) -> int:
    config = model.config
    weights = sum(p.numel() for p in model.parameters()) - config.vocab_size * config.d_model
    cached = 2 * config.num_layers * config.kv_heads * config.d_head * (PROMPT + NEW // 2)
    return 4 * (weights + number * cached)


def measure(shape: str, rounds: int, console: Console) -> None:
    model = build(shape)
    theirs = exported(model)
    if theirs is None:
        console.print(
            "transformers is not installed: its column is left out (pip install 'scratchlm[interop]')"
        )
    # written once: the system gives pages on demand
    memory = (torch.ones(COPIED // 4), torch.ones(COPIED // 4))
    for number in (1, 8):
        expected = ours(model, number)
        sides = {"engine": rate(lambda number=number: ours(model, number))}
        sides["drawn"] = rate(lambda number=number: ours(model, number, drawn=True))
        sides["one by one"] = rate(lambda number=number: ours(model, number, plain=True))
        if theirs is not None:
            same = sum(a == b for a, b in zip(expected, hugging_face(theirs, number), strict=True))
            console.print(f"{shape}, {number} texts: {same} of {number} equal Hugging Face's, token by token")
            sides["Hugging Face"] = rate(lambda number=number: hugging_face(theirs, number))
            sides["Hugging Face, drawn"] = rate(
                lambda number=number: hugging_face(theirs, number, drawn=True)
            )
        sides["bytes copied"] = lambda: copy_rate(*memory)
        rates = harness.alternate(sides, rounds=rounds)
        copied = statistics.median(rates.pop("bytes copied"))
        bound = number * copied / bytes_of_a_step(model, number)
        got = statistics.median(rates["engine"])
        console.print(f"copy rate {copied / 1e9:.1f} GB/s: at most {bound:,.0f} tokens/s; {got / bound:.0%}")
        baseline = "Hugging Face" if theirs is not None else "one by one"
        ordered = {baseline: rates[baseline], **rates}
        setup = {"shape": shape, "texts": number, "threads": torch.get_num_threads(), "bound": bound}
        harness.report("generate", "tokens/s", ordered, part="texts", **setup)


def choosing(vocab_size: int) -> dict[str, Callable[[], float]]:
    """Two ways to draw a token for each of 8 rows, in tokens/s."""
    config, rows, times = SamplingConfig(**DRAWN), 8, 20
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(0)) * 6  # sharp
    choosers = [Chooser(config, seed, [0], vocab_size) for seed in range(rows)]
    nothing = torch.zeros(1, 0, dtype=torch.long)

    def one_by_one() -> None:
        for row, chooser in zip(logits, choosers, strict=True):
            int(sample(row[None], config, chooser.generator, nothing)[0])

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def measure() -> float:
            start = time.perf_counter()
            for _ in range(times):
                work()
            return times * rows / (time.perf_counter() - start)

        return measure

    return {
        "row by row": timed(one_by_one),
        "at once": timed(lambda: choose(logits, choosers, [None] * rows)),
    }


def of_one_prompt(model: torch.nn.Module) -> dict[str, Callable[[], float]]:
    """Eight continuations of one prompt, in tokens/s: as eight requests, and as one that computes it once."""
    ids = torch.randint(model.config.vocab_size, (256,), generator=torch.Generator().manual_seed(1)).tolist()

    def write(requests: int, n: int) -> list[list[int]]:
        sampling = SamplingConfig(max_new_tokens=16, **DRAWN)
        asked = [Request(prompt_ids=ids, sampling=sampling, n=n, stop_ids=())] * requests
        results = Engine(model, None, slots=8).run(asked)
        return [[token.token_id for token in choice.tokens] for r in results for choice in r.choices]

    return {"eight requests": rate(lambda: write(8, 1)), "n=8": rate(lambda: write(1, 8))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", help=", ".join(SHAPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if unknown := [shape for shape in arguments.shapes if shape not in SHAPES]:
        parser.error(f"no shape {unknown[0]!r}; there are {', '.join(SHAPES)}")
    torch.set_num_threads(arguments.threads)
    for shape in arguments.shapes or SHAPES:
        measure(shape, arguments.rounds, Console())
        model, setup = build(shape), {"shape": shape, "threads": torch.get_num_threads()}
        found = harness.alternate(choosing(model.config.vocab_size), rounds=arguments.rounds)
        harness.report("generate", "tokens/s", found, part="choosing", **setup)
        found = harness.alternate(of_one_prompt(model), rounds=arguments.rounds)
        harness.report("generate", "tokens/s", found, part="n of one", **setup)


if __name__ == "__main__":
    main()
