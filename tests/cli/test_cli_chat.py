"""`scratchlm chat`: a conversation from words on the input, and one on a terminal."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from scratchlm.cli import chat
from scratchlm.cli.conversation import Conversation
from scratchlm.generate import Engine, Request, SamplingConfig
from scratchlm.train.folder import load_run

SECONDS = 120
"""The longest wait for a process; it ends as soon as what is waited for is there."""


@pytest.fixture
def run(finished_run):
    return load_run(finished_run, device="cpu")


@pytest.fixture
def conversation(run):
    return Conversation(run, SamplingConfig(max_new_tokens=12))


def say(conversation, text, **how):
    return "".join(said.text for said in conversation.ask(text, **how))


def typed(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_each_line_is_answered_and_the_conversation_is_saved(cli, monkeypatch, finished_run, tmp_path):
    typed(monkeypatch, "Hello\n\n/system Be kind.\nAnd now?\n/save talk.jsonl\n/quit\nnot read\n")
    done = cli("chat", finished_run, "--max-new-tokens", 6, "--seed", 3)
    assert (done.code, done.err) == (0, "")
    kept = json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8"))
    roles = [m["role"] for m in kept["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert done.out == "".join(m["content"] + "\n" for m in kept["messages"] if m["role"] == "assistant")
    typed(monkeypatch, "Hello\n/system Be kind.\nAnd now?\n")
    assert cli("chat", finished_run, "--max-new-tokens", 6, "--seed", 3).out == done.out


def test_alone_each_message_is_answered_as_if_it_were_the_first(cli, monkeypatch, finished_run, tmp_path):
    words = ("chat", finished_run, "--max-new-tokens", 6, "--temperature", 0, "--alone")
    typed(monkeypatch, "And now?\n/save first.jsonl\n")
    assert cli(*words).code == 0
    typed(monkeypatch, "Hello\nAnd now?\n/save second.jsonl\n/alone\nAnd then?\n/save third.jsonl\n")
    assert cli(*words).code == 0
    first, second, third = (
        json.loads((tmp_path / f"{name}.jsonl").read_text(encoding="utf-8"))["messages"]
        for name in ("first", "second", "third")
    )
    assert first == second
    assert [m["content"] for m in third if m["role"] == "user"] == ["And now?", "And then?"]


def test_an_answer_is_what_the_engine_writes_after_the_conversation(run):
    conversation = Conversation(run, SamplingConfig(max_new_tokens=4, temperature=0.0))
    first = say(conversation, "A")
    second = say(conversation, "B")
    assert conversation.num_forgotten == 0
    assert [m["content"] for m in conversation.messages] == ["A", first, "B", second]
    template = conversation.template
    request = Request(
        prompt_ids=template.render(conversation.messages[:3]),
        sampling=SamplingConfig(max_new_tokens=4, temperature=0.0, stop=tuple(template.stop_texts)),
        stop_ids=tuple(template.stop_ids),
    )
    (result,) = Engine(run.model, run.tokenizer, slots=1).run([request])
    assert second == result.choices[0].text.lstrip()


def test_a_stopped_answer_is_kept_and_the_next_one_is_not_disturbed(run, conversation):
    steps = iter(range(100))
    stopped = say(conversation, "Hello", stopped=lambda: next(steps) >= 6)
    other = Conversation(run, conversation.sampling)
    whole = say(other, "Hello")
    assert whole.startswith(stopped)
    assert stopped != whole
    assert conversation.messages[-1] == {"role": "assistant", "content": stopped}
    other.messages = list(conversation.messages)
    assert say(conversation, "Go on") == say(other, "Go on")


def test_an_answer_that_is_no_longer_read_leaves_the_engine(conversation):
    answer = conversation.ask("Hello")
    while not next(answer).text:
        pass
    answer.close()
    assert conversation.engine.stats().running == 0
    assert conversation.messages[-1]["role"] == "assistant"


def test_what_no_longer_fits_is_forgotten_oldest_first_but_never_the_system_message(conversation, run):
    conversation.system = "Be kind."
    asked = []
    submit = conversation.engine.submit
    conversation.engine.submit = lambda request: asked.append(request) or submit(request)
    for number in range(5):
        say(conversation, f"Message {number}")
    assert conversation.num_forgotten > 0
    said = conversation.messages[1 : 1 + 2 * 4]
    kept = [conversation.messages[0], *said[conversation.num_forgotten :], conversation.messages[-2]]
    assert asked[-1].prompt_ids == conversation.template.render(kept)
    assert len(asked[-1].prompt_ids) + 12 <= run.model.config.context_length
    before = list(conversation.messages)
    with pytest.raises(ValueError, match=r"this message has \d+ tokens, and the model sees 64; shorten it"):
        say(conversation, "long " * 100)
    assert conversation.messages == before


def test_undo_reset_and_system_change_what_was_said(conversation):
    with pytest.raises(ValueError, match="nothing was said yet"):
        conversation.undo()
    conversation.system = "Be kind."
    say(conversation, "One")
    say(conversation, "Two")
    assert conversation.undo() == "Two"
    assert [m["content"] for m in conversation.messages[:2]] == ["Be kind.", "One"]
    conversation.system = ""
    assert conversation.messages[0]["content"] == "One"
    conversation.system = "Be brief."
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "unknown command '/rest'. Did you mean '/reset'?"),
        ("/set temprature=1", "unknown key 'temprature'. Did you mean 'temperature'?"),
        ("/set temperature=-1", "temperature"),
        ("/set hot", "an override is key=value"),
        ("/save", "say where"),
        ("/save missing/talk.jsonl", "choose a file in a folder that is there"),
        ("/again", "nothing was said yet"),
    ],
)
def test_a_mistake_in_a_command_is_named(conversation, line, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        chat.Terminal(conversation, tokens=False)._take(line)
    assert message in str(error.value)


def test_a_mistake_ends_a_piped_conversation_with_one_line(cli, monkeypatch, finished_run):
    typed(monkeypatch, "/sett\n")
    assert "unknown command '/sett'" in cli("chat", finished_run).error


@pytest.fixture
def terminal(conversation, monkeypatch):
    """A terminal where words are typed by the test; an exception among them is raised in their place."""

    def talk(*words):
        coming = iter(words)

        def read(prompt):
            word = next(coming, EOFError())
            if isinstance(word, BaseException):
                raise word
            return word

        monkeypatch.setattr("builtins.input", read)
        made = chat.Terminal(conversation, tokens=False)
        made.interactive = True
        made.talk()

    return talk


def test_ctrl_c_leaves_neither_the_field_nor_the_conversation(terminal, conversation, capsys):
    def interrupt_after(number):
        for count, said in enumerate(type(conversation).ask(conversation, "Hello", stopped=stopped[0])):
            if count == number:
                signal.raise_signal(signal.SIGINT)
            yield said

    stopped = []
    conversation.ask = lambda text, stopped_by=stopped, **how: (
        stopped_by.append(how["stopped"]) or interrupt_after(2)
    )
    terminal(KeyboardInterrupt(), "Hello", "/settings")
    said = capsys.readouterr().out
    assert "Ctrl-D leaves." in said
    assert "; stopped" in said
    assert "temperature" in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [m["role"] for m in conversation.messages] == ["user", "assistant"]


def test_on_a_terminal_a_mistake_is_said_and_the_conversation_goes_on(terminal, capsys):
    terminal("/nonsense", "/set max_new_tokens=3", "Hello", "/tokens", "Hello", "/undo", "/alone", "/help")
    said = capsys.readouterr()
    assert "error: unknown command '/nonsense'" in said.err
    assert "max_new_tokens: 3" in said.out
    assert "taken back: Hello" in said.out
    assert "each message is answered by itself." in said.out
    assert all(name in said.out for name in chat.COMMANDS)


def test_only_improbable_tokens_are_coloured_and_none_can_steer_the_terminal(conversation, capsys):
    from rich.console import Console

    made = chat.Terminal(conversation, tokens=True)
    made.interactive = True
    made.console = Console(force_terminal=True, color_system="truecolor", highlight=False, markup=False)
    for text, probability in (("sure", 0.95), ("rare\x1b[2J", 0.1), ("[b]", 1.0)):
        made._write(text, probability)
    assert capsys.readouterr().out == "sure\x1b[37;48;2;135;36;0mrare\ufffd[2J\x1b[0m[b]"


@pytest.mark.slow
def test_on_a_real_terminal_it_answers_stops_and_leaves(finished_run, run):
    pty = pytest.importorskip("pty")
    outside, inside = pty.openpty()
    words = [sys.executable, "-m", "scratchlm", "chat", str(finished_run), "--max-new-tokens", "1000000"]
    process = subprocess.Popen(
        words, stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(inside)
    seen = ""

    def wait_for(pattern):
        nonlocal seen
        until = time.monotonic() + SECONDS
        while not (found := re.search(pattern, seen)):
            assert time.monotonic() < until, seen
            if select.select([outside], [], [], 0.2)[0]:
                seen += os.read(outside, 4096).decode("utf-8", "replace")
        seen = seen[found.end() :]

    try:
        wait_for("> ")
        os.write(outside, b"/set logit_bias={%d=-100}\r" % run.tokenizer.end_of_text_id)  # no end
        wait_for("logit_bias: ")
        os.write(outside, b"Hello\r")
        wait_for("Hello")
        wait_for(r"[a-z ][^a-z]*[a-z ][^a-z]*[a-z ]")  # the answer has begun
        os.write(outside, b"\x03")
        wait_for("; stopped")
        wait_for("> ")
        os.write(outside, b"\x04")
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(outside)
