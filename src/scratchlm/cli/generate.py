"""`scratchlm generate`: a trained model continues a text, token by token."""

import contextlib
import math
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scratchlm.cli.sources import CheckpointOption, Plugin, Temperature, TopK, TopP, load_plugins

if TYPE_CHECKING:
    from scratchlm.generate.beam import BeamConfig
    from scratchlm.generate.engine import Engine
    from scratchlm.generate.request import Event, Request, TokenInfo
    from scratchlm.generate.speculate import Drafter
    from scratchlm.tokenizer import Tokenizer
    from scratchlm.train.folder import LoadedRun

MOST_AT_ONCE = 8
"""Texts that are computed together: more share each step's weights further, but wait longer for the first."""

DRAWING = {
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias", "stop", "seed", "draft", "alternatives", "probabilities",
}  # fmt: skip
"""Options that say how tokens are drawn: a search draws none."""

PATIENCE_SECONDS = 1.0
"""Compiled code is read from the disk in about 0.8 s (measured, one core); what takes longer is explained."""


def generate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Run folder.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue; empty: the beginning of a document.")] = "",
    number: Annotated[int, typer.Option("-n", min=1, max=128, help="How many texts.")] = 1,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: Annotated[
        float | None, typer.Option(help="Only tokens with this share of the likeliest one's.")
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what occurred gets less likely.")] = 1.0,
    presence_penalty: Annotated[
        float, typer.Option(help="Taken from the logits of tokens that were written, -2 to 2.")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option(help="The same, once for each time that a token was written.")
    ] = 0.0,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKEN=NUMBER",
            help="Added to a token's logit; TOKEN is an id or a text; -100 forbids it; may be repeated.",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=0, help="The most tokens to add.")] = 256,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the output; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    beams: Annotated[
        int | None, typer.Option(min=1, max=128, help="Search the likeliest texts instead of drawing any.")
    ] = None,
    length_penalty: Annotated[
        float, typer.Option(help="With --beams: 0 prefers short texts, above 1 long ones.")
    ] = 1.0,
    draft: Annotated[
        str | None,
        typer.Option(metavar="RUN|ngram", help="A smaller run, or the text's own past, guesses ahead."),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Colour tokens by probability.")
    ] = False,
    alternatives: Annotated[
        int | None,
        typer.Option(min=0, metavar="K", help="A table of tokens, each with the K likeliest at its place."),
    ] = None,
    checkpoint: CheckpointOption = "newest",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    plugin: Plugin = None,
) -> None:
    """Let a trained model write, streaming to the terminal."""
    from scratchlm.config import validate
    from scratchlm.generate.request import Request
    from scratchlm.generate.sampling import SamplingConfig
    from scratchlm.train.folder import load_run

    load_plugins(plugin)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "max_new_tokens": max_new_tokens,
        "stop": tuple(stop or ()),
    }
    configs = [validate(SamplingConfig, {**settings, "seed": seed + index}) for index in range(number)]
    search = _search_settings(context, beams, number, length_penalty, max_new_tokens)
    run = load_run(folder, device=device, checkpoint=checkpoint)
    if search is not None:
        _write_best(run, prompt, search, number)
        return
    biases = read_biases(logit_bias or (), run.tokenizer)
    ids = (run.tokenizer.end_of_text_id, *run.tokenizer.encode_ordinary(prompt))
    requests = [
        Request(
            prompt_ids=ids,
            sampling=config.model_copy(update={"logit_bias": biases}),
            logprobs=alternatives,
        )
        for config in configs
    ]
    drafter = None if draft is None else _drafter(draft, run, device)
    _write(run, prompt, requests, drafter, colours=probabilities)


def _write(
    run: "LoadedRun", prompt: str, requests: list["Request"], drafter: "Drafter | None", *, colours: bool
) -> None:
    """Write all texts, the first as it comes, the others, computed beside it, one after the other."""
    from scratchlm.cli.console import err, out, write_text
    from scratchlm.generate.engine import Engine

    slots, chunk = min(len(requests), MOST_AT_ONCE), run.model.config.context_length
    engine = Engine(run.model, run.tokenizer, slots=slots, chunk=chunk, drafter=drafter)
    with _patience():
        engine.warm_up()
    console, told = out(), _Told(engine, [engine.submit(request) for request in requests])
    for index, request in enumerate(requests):
        if len(requests) > 1:
            console.print(f"{'' if index == 0 else chr(10)}seed {request.sampling.seed}", style="dim")
        write_text(prompt)
        tokens: list[TokenInfo] = []
        for event in told.of(index):
            if event.error is not None:
                raise ValueError(f"generation: {event.error}")
            if event.token is not None:
                tokens.append(event.token)
            _show(event, colours=colours and console.is_terminal)
        write_text("\n")
        if request.logprobs is not None:
            _show_alternatives(tokens, run.tokenizer)
    if drafter is not None:
        stats = engine.stats()
        right = f"{stats.confirmed:,} of {stats.drafted:,} guesses were right"
        err().print(f"{right}: {stats.new_tokens:,} tokens in {stats.steps:,} steps", style="dim")


class _Told:
    """The engine's events, sorted by request: those of one are handed out as they come."""

    def __init__(self, engine: "Engine", request_ids: list[int]) -> None:
        self.engine, self.request_ids = engine, request_ids
        self.events: dict[int, list[Event]] = {request_id: [] for request_id in request_ids}

    def of(self, index: int) -> Iterator["Event"]:
        """Yield the events of a request until it has ended."""
        mine, read = self.events[self.request_ids[index]], 0
        while True:
            for event in mine[read:]:
                yield event
                if event.finish_reason is not None:
                    return
            read = len(mine)
            for event in self.engine.step():
                self.events[event.request_id].append(event)


def _show(event: "Event", *, colours: bool) -> None:
    """Write what an event brings; in colours: on a background from red (unlikely) to none (certain)."""
    from rich.text import Text

    from scratchlm.cli.console import out, printable, write_text

    if not colours or event.token is None:
        write_text(event.text)
        return
    surprise = 1 - math.exp(event.token.logprob)
    style = f"on rgb({round(150 * surprise)},{round(40 * surprise)},0)"
    out().print(Text(printable(event.text), style=style), end="")
    sys.stdout.flush()


def _show_alternatives(tokens: list["TokenInfo"], tokenizer: "Tokenizer") -> None:
    """Print a table: every token, its probability, and what else was likely at its place."""
    from scratchlm.cli.console import print_table, table

    def name(token_id: int) -> str:
        data = tokenizer.token_bytes(token_id)
        try:
            return repr(data.decode("utf-8"))[1:-1]
        except UnicodeDecodeError:
            return repr(data)[2:-1]  # half a character

    made = table("token", "p", "likeliest", numbers=("p",))
    for token in tokens:
        likeliest = [f"{name(i)} {math.exp(logprob):.0%}" for i, logprob in token.alternatives]
        made.add_row(f"'{name(token.token_id)}'", f"{math.exp(token.logprob):.1%}", "   ".join(likeliest))
    print_table(made, spare=("likeliest",))


def _search_settings(
    context: typer.Context, beams: int | None, number: int, length_penalty: float, max_new_tokens: int
) -> "BeamConfig | None":
    """How to search, None if nothing is searched; options that do not go together are refused."""
    from scratchlm.config import validate
    from scratchlm.generate.beam import BeamConfig

    sources = {name: context.get_parameter_source(name) for name in context.params}
    named = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if beams is None:
        if "length_penalty" in named:
            raise ValueError("--length-penalty is for a search; give --beams, too.")
        return None
    if drawing := sorted(named & DRAWING):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in drawing)
        raise ValueError(f"--beams searches and draws nothing; leave {options} out.")
    if number > beams:
        raise ValueError(f"-n {number}: --beams {beams} finds no more than {beams} texts.")
    settings = {"beams": beams, "length_penalty": length_penalty, "max_new_tokens": max_new_tokens}
    return validate(BeamConfig, settings)


def _write_best(run: "LoadedRun", prompt: str, config: "BeamConfig", number: int) -> None:
    """Write the best texts that a search finds."""
    from scratchlm.cli.console import out, write_text
    from scratchlm.generate.beam import beam_search
    from scratchlm.generate.runner_fused import fastest_runner

    end = run.tokenizer.end_of_text_id
    ids = (end, *run.tokenizer.encode_ordinary(prompt))
    runner = fastest_runner(run.model, config.beams)
    with _patience():
        runner.warm_up()
    found = beam_search(run.model, ids, config, stop_ids=(end,), runner=runner)
    for index, beam in enumerate(found[:number]):
        if number > 1:
            out().print(f"{chr(10) if index else ''}score {beam.score:.3f}", style="dim")
        new = beam.token_ids[:-1] if beam.finished else beam.token_ids
        write_text(prompt + run.tokenizer.decode(list(new)) + "\n")


def read_biases(words: list[str] | tuple[str, ...], tokenizer: "Tokenizer") -> dict[int, float]:
    """Return token id -> bias from words such as "42=-1.5" or " the=-100".

    Raises:
        ValueError: A word is no such thing, or its text is not one token.
    """
    biases: dict[int, float] = {}
    for word in words:
        token, separator, number = word.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            separator = ""
        if not separator or not token:
            raise ValueError(f"--logit-bias {word}: give TOKEN=NUMBER, for example 42=-100 or ' the=2'.")
        ids = [int(token)] if token.isdecimal() else tokenizer.encode_ordinary(token)
        if len(ids) != 1:
            raise ValueError(f"--logit-bias {word}: this is {len(ids)} tokens, {ids}; name one by its id.")
        biases[ids[0]] = value
    return biases


def _drafter(word: str, run: "LoadedRun", device: str) -> "Drafter":
    """Who guesses: the text's own past, or a smaller run with the same tokens."""
    from scratchlm.generate.speculate import ModelDrafter, NgramDrafter
    from scratchlm.train.folder import load_run

    if word == "ngram":
        return NgramDrafter()
    smaller = load_run(Path(word), device=device)
    if smaller.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise ValueError(f"--draft {word}: another tokenizer; guesses must be in the same tokens.")
    return ModelDrafter(smaller.model)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Say on a terminal what takes so long, if it takes long."""
    from scratchlm.cli.console import err

    console = err()
    text = "compiling for this machine: a few seconds, the first time only"
    timer = threading.Timer(PATIENCE_SECONDS, lambda: console.print(text, style="dim"))
    timer.daemon = True
    if console.is_terminal:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
