"""`scratchlm chat`: a conversation with a trained model in the terminal.

    > Tell me a story.            what is typed; words that begin with "/" are commands
    Once upon a time ...          the answer, as it is written; Ctrl-C stops it
    > ^D                          leaves

Without a terminal each line of the input is a message, and only the answers are written.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scratchlm.cli.sources import CheckpointOption, Plugin, Temperature, TopK, TopP, load_plugins

if TYPE_CHECKING:
    from rich.console import Console

    from scratchlm.cli.conversation import Conversation

COMMANDS = {
    "/help": "what can be typed",
    "/again": "another answer to the last message",
    "/undo": "take the last message and its answer back",
    "/reset": "begin anew; the system message stays",
    "/system TEXT": "who the assistant is; without a text: nobody in particular",
    "/set NAME=VALUE": "temperature=0.5, top_k=40, max_new_tokens=100, stop=['.'], ...",
    "/settings": "how answers are written",
    "/tokens": "colour tokens by their probability, or no longer",
    "/alone": "answer each message by itself, or no longer",
    "/save FILE": "write the conversation as JSON",
    "/quit": "leave, as Ctrl-D does",
}


def chat(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    system: Annotated[str, typer.Option(help="A first message that says who the assistant is.")] = "",
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed and words give the same conversation.")] = 0,
    tokens: Annotated[bool, typer.Option("--tokens", help="Colour tokens by probability.")] = False,
    alone: Annotated[
        bool,
        typer.Option("--alone", help="Answer each message by itself: for who learnt single questions only."),
    ] = False,
    checkpoint: CheckpointOption = "newest",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    plugin: Plugin = None,
) -> None:
    """Talk to a trained model; /help shows what can be typed besides messages."""
    from scratchlm.config import validate
    from scratchlm.generate.sampling import SamplingConfig
    from scratchlm.train.folder import load_run

    load_plugins(plugin)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    sampling = validate(SamplingConfig, {**settings, "max_new_tokens": max_new_tokens})
    run = load_run(folder, device=device, checkpoint=checkpoint)
    from scratchlm.cli.conversation import Conversation

    conversation = Conversation(run, sampling)
    conversation.system = system
    Terminal(conversation, tokens=tokens, alone=alone).talk()


class Terminal:
    """Reads what is typed and writes the answers."""

    def __init__(self, conversation: "Conversation", *, tokens: bool, alone: bool = False) -> None:
        """Talk with a model; `tokens`: coloured; `alone`: what was said before is forgotten."""
        from scratchlm.cli.console import out

        self.conversation, self.tokens, self.alone = conversation, tokens, alone
        self.console: Console = out()
        self.interactive = sys.stdin.isatty() and self.console.is_terminal

    def talk(self) -> None:
        """Answer until the input ends."""
        from scratchlm.cli.errors import show

        self._greet()
        for line in self._lines():
            try:
                if not self._take(line):
                    return
            except ValueError as error:
                if not self.interactive:
                    raise
                show(str(error))

    def _greet(self) -> None:
        if not self.interactive:
            return
        run = self.conversation.run
        self._note(f"{run.config.name}, step {run.step:,}. Ctrl-C stops an answer, Ctrl-D leaves, /help.")
        if not self.conversation.template.special:
            self._note("Its tokenizer has no tokens for roles: they are words, and it may not know them.")
        if self.alone:
            self._note("Each message is answered by itself; /alone lets it remember.")

    def _lines(self) -> Iterator[str]:
        """What is typed, without blanks around it, until the input ends."""
        prompt = "> "
        if self.interactive:
            with contextlib.suppress(ImportError):  # editing and history; not on Windows
                import readline  # noqa: F401
        while True:
            try:
                line = input(prompt if self.interactive else "")
            except EOFError:
                if self.interactive:
                    self.console.print()
                return
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self.console.print()
                self._note("Ctrl-D leaves.")
                continue
            if line.strip():
                yield line.strip()

    def _take(self, line: str) -> bool:
        """Answer a message or do what a command says; False: leave."""
        if not line.startswith("/"):
            if self.alone:
                self.conversation.reset()
            self._answer(line)
            return True
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return False
        actions: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._table(COMMANDS),
            "/again": lambda _: self._answer(self.conversation.undo()),
            "/undo": lambda _: self._undo(),
            "/reset": lambda _: self._reset(),
            "/system": self._system,
            "/set": self._set,
            "/settings": lambda _: self._table(self.conversation.sampling.model_dump()),
            "/tokens": lambda _: self._turn_tokens(),
            "/alone": lambda _: self._turn_alone(),
            "/save": self._save,
        }
        if word not in actions:
            from scratchlm.registry import unknown

            names = [*actions, "/quit"]
            raise ValueError(f"{unknown('command', word, names)} A message does not begin with '/'.")
        actions[word](rest.strip())
        return True

    def _answer(self, text: str) -> None:
        """Write the model's answer; Ctrl-C ends it."""
        started, count = time.perf_counter(), 0
        with _interruptible() as stopped:
            try:
                for said in self.conversation.ask(text, stopped=stopped):
                    count += 1
                    self._write(said.text, said.probability)
            finally:
                self.console.print()
        seconds = time.perf_counter() - started
        notes = [f"{count} tokens, {count / seconds:.0f} tokens/s"]
        notes += ["stopped"] * stopped()
        if self.conversation.num_forgotten:
            notes.append(
                f"the first {self.conversation.num_forgotten} messages no longer fit into its context"
            )
        self._note("; ".join(notes))

    def _write(self, text: str, probability: float) -> None:
        from scratchlm.cli.console import printable, write_text

        if not (self.tokens and self.interactive):
            write_text(text)
            return
        from rich.text import Text

        surprise = 1 - probability  # red behind what was unlikely, nothing behind what was certain
        style = f"white on rgb({round(150 * surprise)},{round(40 * surprise)},0)" if surprise > 0.1 else ""
        self.console.print(Text(printable(text), style=style), end="")
        sys.stdout.flush()

    def _undo(self) -> None:
        self._note(f"taken back: {self.conversation.undo()}")

    def _reset(self) -> None:
        self.conversation.reset()
        self._note("begun anew.")

    def _system(self, text: str) -> None:
        self.conversation.system = text
        self._note(f"system message: {text}" if text else "no system message.")

    def _set(self, words: str) -> None:
        from scratchlm.config import parse_override, validate
        from scratchlm.generate.sampling import SamplingConfig

        keys, value = parse_override(words)
        settings = {**self.conversation.sampling.model_dump(), ".".join(keys): value}
        self.conversation.sampling = validate(SamplingConfig, settings, source="/set")
        self._note(f"{'.'.join(keys)}: {settings['.'.join(keys)]}")

    def _turn_tokens(self) -> None:
        self.tokens = not self.tokens
        self._note("tokens are coloured." if self.tokens else "tokens are no longer coloured.")

    def _turn_alone(self) -> None:
        self.alone = not self.alone
        self._note("each message is answered by itself." if self.alone else "what was said is remembered.")

    def _save(self, name: str) -> None:
        if not name:
            raise ValueError("/save: say where, such as /save talk.jsonl.")
        path = Path(name)
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"{path}: choose a file in a folder that is there.")
        self.conversation.save(path)
        self._note(f"saved as {path}.")

    def _note(self, text: str) -> None:
        """Say something about the conversation, where somebody looks on."""
        if self.interactive:
            from scratchlm.cli.console import printable

            self.console.print(printable(text), style="dim")

    def _table(self, rows: dict[str, object]) -> None:
        from scratchlm.cli.console import print_table, table

        made = table("", "")
        for name, value in rows.items():
            made.add_row(name, str(value))
        print_table(made)


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether Ctrl-C was pressed, so that a step is finished; a second one does not wait."""
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
