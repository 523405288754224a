"""The page in a real browser, against a server that answers what a test wants."""

import json
import shutil

import pytest
from page_stub import SECONDS, Stub

from scratchlm.serve.errors import ApiError
from scratchlm.serve.protocol import ChatBody, CompletionBody, TokenizeBody, parse

playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
KINDS = {"/v1/chat/completions": ChatBody, "/v1/completions": CompletionBody, "/tokenize": TokenizeBody}
EVIL = (
    "</div><img src=x onerror=\"window.hit='img'\"><script>window.hit='script'</script>${1+1} {{2}} &lt;b&gt;"
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser: {', '.join(NAMES)}")


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(
                executable_path=BROWSER,
                args=["--no-sandbox", "--disable-dev-shm-usage"],
                timeout=SECONDS * 1000,
            )
        except playwright.Error as error:
            pytest.skip(f"{BROWSER} does not start: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def stub():
    made = Stub()
    yield made
    made.close()
    for path, body in made.asked:  # what the page asks is what the server takes
        try:
            parse(KINDS[path], json.dumps(body).encode())
        except ApiError as error:
            pytest.fail(f"{path}: {error.message}")


@pytest.fixture
def visit(chromium, stub):
    """Open the page; complaints of its script or its policy fail the test."""
    contexts, complaints = [], []

    def open_page(url=stub.url, loaded="#send:not([disabled])", **settings):
        contexts.append(chromium.new_context(**{"viewport": {"width": 1000, "height": 700}, **settings}))
        contexts[-1].set_default_timeout(SECONDS * 1000)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if "Policy" in line.text else None)
        page.goto(url)
        page.wait_for_selector(loaded)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def say(page, text):
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def ready(page):
    page.wait_for_selector("#send:not([disabled])")


def finished(page, number=1):
    """Wait for this many answers, and for the end of all that are being written."""
    page.locator(".figures").nth(number - 1).wait_for(state="attached")
    page.wait_for_selector("#send:not(.stop)")


def answers(page):
    return page.locator(".answer .body").all_inner_texts()


def test_an_answer_streams_and_the_conversation_goes_on_and_is_kept(visit, stub):
    page = visit()
    stub.gate.clear()
    say(page, "Who are you?")
    page.locator(".answer .body", has_text="Hello,").wait_for()
    assert answers(page) == [" Hello,"]
    assert page.inner_text("#send") == "Stop"
    stub.gate.set()
    finished(page)
    assert answers(page) == [" Hello, I am demo."]
    assert "6 tokens" in page.inner_text(".figures")
    assert page.inner_text("#send") == "Send"

    page.click("#open-settings")
    page.fill("#set-system", "Be brief.")
    page.fill("#set-top_k", "5")
    page.fill("#set-seed", "7")
    page.keyboard.press("Escape")
    say(page, "And\u00a0now?")
    finished(page, 2)
    body = stub.bodies("/v1/chat/completions")[1]
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in body["messages"]] == [
        *("Be brief.", "Who are you?", " Hello, I am demo.", "And\u00a0now?")
    ]
    assert (body["top_k"], body["seed"], body["temperature"]) == (5, 7, 0.8)

    page.reload()
    ready(page)
    assert answers(page) == []
    page.press("#prompt", "ArrowUp")
    page.press("#prompt", "ArrowUp")
    assert page.input_value("#prompt") == "Who are you?"
    page.click("#open-history")
    page.click(".past .open")
    assert len(answers(page)) == 2
    page.click(".said button >> nth=1")  # edit the second message: it and what followed go
    assert page.input_value("#prompt") == "And\u00a0now?"
    assert len(answers(page)) == 1
    page.click("#open-history")
    page.click("#forget")
    assert page.inner_text("#past") == "Nothing yet."
    assert "now?" not in page.evaluate("JSON.stringify({...localStorage})")


@pytest.mark.parametrize("how", [pytest.param("button", marks=pytest.mark.slow), "key"])
def test_stopping_keeps_what_was_said_and_leaves_the_server(visit, stub, how):
    page = visit()
    stub.gate.clear()
    say(page, "Talk for ever.")
    page.locator(".answer .body", has_text="Hello,").wait_for()
    page.click("#send") if how == "button" else page.keyboard.press("Escape")
    finished(page)
    assert stub.broken.wait(SECONDS)
    assert answers(page) == [" Hello,"]
    assert "stopped" in page.inner_text(".figures")
    stub.gate.set()
    page.click("button:text-is('Again')")
    finished(page)
    assert answers(page) == [" Hello, I am demo."]
    assert "2 / 2" in page.inner_text(".answer .foot")


def test_a_token_shows_what_else_could_stand_there_and_the_text_goes_on_from_it(visit, stub):
    page = visit()
    say(page, "Who are you?")
    finished(page)
    page.keyboard.press("Alt+t")
    assert page.locator(".answer .token").all_inner_texts() == [" Hello", ",", " I", " am", " demo", "."]
    page.hover(".answer .token >> nth=3")
    assert "60.7 %" in page.inner_text("#about .choice >> nth=0")  # exp(-0.5)
    page.focus(".answer .token >> nth=0")
    for key in ("ArrowRight", "ArrowRight", "Enter", "Tab", "Tab"):
        page.keyboard.press(key)
    stub.say = lambda body: [" sat", "."]
    page.keyboard.press("Enter")
    finished(page)
    assert answers(page) == [" Hello, dog sat."]
    asked = stub.bodies("/v1/chat/completions")[-1]
    assert asked["answer_token_ids"] == [stub.id_of(text) for text in (" Hello", ",", " dog")]
    assert asked["max_completion_tokens"] == 256 - 3
    assert page.locator(".token.chosen").all_inner_texts() == [" dog"]
    page.click("[aria-label='The answer before']")
    assert answers(page) == [" Hello, I am demo."]


@pytest.mark.slow
def test_a_text_is_continued_scored_and_branched_inside_its_beginning(visit, stub):
    page = visit()
    page.click("#mode-complete")
    page.click("#show-tokens")
    say(page, "Once upon a")
    page.locator(".answer .token").nth(9).wait_for()
    assert answers(page) == ["<|endoftext|>Once upon a Hello, I am demo."]
    start = [stub.id_of(text) for text in ("<|endoftext|>", "Once", " upon", " a")]
    assert [b["prompt"] for b in stub.bodies("/v1/completions")] == [start, start]
    page.click(".answer .token >> nth=2")
    page.click("#about .choice >> nth=1")
    finished(page)
    assert stub.bodies("/v1/completions")[-1]["prompt"] == [*start[:2], stub.id_of(" cat")]
    page.click("#show-tokens")
    assert answers(page) == ["Once cat Hello, I am demo."]
    page.click("button:text-is('Use as prompt')")
    assert page.input_value("#prompt") == "Once cat Hello, I am demo."


@pytest.mark.slow
def test_two_models_answer_side_by_side_each_with_its_own_past(visit, stub):
    stub.models = ["young", "old"]
    page = visit()
    page.click("#compare")
    say(page, "Who?")
    finished(page, 2)
    assert answers(page) == [" Hello, I am young.", " Hello, I am old."]
    say(page, "Again?")
    finished(page, 4)
    said = {b["model"]: b["messages"][1]["content"] for b in stub.bodies("/v1/chat/completions")[2:]}
    assert said == {"young": " Hello, I am young.", "old": " Hello, I am old."}


def test_nothing_that_people_models_or_servers_write_becomes_markup(visit, stub):
    stub.models = [EVIL, "other"]
    stub.say = lambda body: [EVIL, "\u202e", EVIL]
    page = visit()
    say(page, EVIL)
    finished(page)
    page.click("#show-tokens")
    page.click(".answer .token >> nth=0")
    page.keyboard.press("Escape")
    stub.refuse["/v1/chat/completions"] = (400, EVIL, {})
    say(page, "Another one.")
    page.wait_for_selector(".answer .problem:not([hidden])")
    assert page.inner_text(".answer .problem:not([hidden])") == EVIL
    assert page.inner_text(".bubble >> nth=0") == EVIL
    assert page.inner_text(".answer .token >> nth=0") == EVIL
    page.reload()
    ready(page)
    page.click("#open-history")
    page.click(".past .open")
    assert page.inner_text(".bubble >> nth=0") == EVIL
    assert page.locator("img, #turns script, #models script").count() == 0
    assert page.evaluate("window.hit") is None
    refused = "() => { try { document.body.innerHTML = '<b>x</b>'; return false; } catch { return true; } }"
    assert page.evaluate(refused)  # even a mistake of ours could not


@pytest.mark.slow
def test_what_goes_wrong_is_said_and_the_page_goes_on(visit, stub):
    stub.refuse["/v1/models"] = (503, "the server is loading.", {})
    page = visit(loaded="#notice:not([hidden])")
    assert page.inner_text("#notice").startswith("the server is loading.")
    stub.refuse.clear()
    page.click("#notice button")
    ready(page)
    stub.refuse["/v1/chat/completions"] = (429, "the queue is full.", {"retry-after": "3"})
    say(page, "Hello?")
    finished(page)
    assert page.inner_text(".answer .problem") == "the queue is full. Try again in 3 s."
    stub.refuse.clear()
    page.click("button:text-is('Again')")
    finished(page)
    assert page.locator(".answer .problem").is_hidden()
    assert answers(page) == [" Hello, I am demo."]
    page.evaluate("localStorage.setItem('scratchlm.page.1.past', '[{\"id\": 1}, null, {\"turns\": [3]}]')")
    page.evaluate("localStorage.setItem('scratchlm.page.1.settings', '{\"temperature\": \"hot\"}')")
    page.reload()
    ready(page)
    assert page.evaluate("[state.past.length, state.settings.temperature]") == [0, 0.8]
    stub.break_after = 2
    say(page, "Are you there?")
    finished(page)
    assert answers(page) == [" Hello,"]
    assert page.inner_text(".answer .problem") == "The connection broke before the answer's end."
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page, "And now?")
    finished(page, 2)
    assert "does not answer" in page.inner_text(".answer .problem >> nth=1")


@pytest.mark.slow
def test_it_fits_on_a_phone_and_follows_light_and_dark(visit, stub):
    stub.models = ["a-model-with-a-rather-long-name-of-forty", "other"]
    page = visit(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True, color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    page.click("#compare")
    page.fill("#prompt", "A long word: " + "x" * 300)
    page.tap("#send")
    finished(page, 2)
    page.tap("#show-tokens")
    page.tap(".answer .token >> nth=1")
    box = page.locator("#about").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.slow
def test_the_server_itself_answers_and_branches(visit, server):
    page = visit(server.url)
    page.click("#open-settings")
    for name, value in {"seed": 3, "max_tokens": 12}.items():
        page.fill(f"#set-{name}", str(value))
    page.keyboard.press("Escape")
    page.click("#show-tokens")
    for model in ("tiny", "plain"):
        page.select_option("#models select", model)
        page.click("#new")
        say(page, "Hi")
        finished(page)
        first = page.evaluate("state.conversation.turns[0].sides[0].variants[0]")
        assert first["problem"] is None
        assert 0 < len(first["tokens"]) <= 12
        assert all(len(entry["others"]) >= 5 for entry in first["tokens"])
        page.focus(".answer .token >> nth=0")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")  # the second likeliest
        page.keyboard.press("Enter")
        finished(page)
        second = page.evaluate("state.conversation.turns[0].sides[0].variants[1]")
        assert second["problem"] is None
        assert second["tokens"][0]["id"] == first["tokens"][0]["others"][1]["id"]
        assert 1 <= len(second["tokens"]) <= 12
    page.click("#mode-complete")
    page.click("#compare")
    say(page, "Once \u20ac")
    finished(page, 2)
    page.wait_for_selector(".answer >> nth=1 >> .token >> nth=9")  # the prompt's nine are scored
    sides = page.evaluate("state.conversation.turns[0].sides")
    for side in sides:
        variant = side["variants"][0]
        assert (variant["problem"], len(variant["prompt"])) == (None, 9)
        assert [len(entry["others"]) > 0 for entry in variant["prompt"]] == [False, *[True] * 8]
        assert bytes(b for entry in variant["prompt"][6:] for b in entry["bytes"]) == "\u20ac".encode()
    server.idle()
