"""The page as a file: it fetches nothing, makes no markup out of texts, and may run nothing but itself."""

import base64
import hashlib
import re

from scratchlm.serve.page import load_page

TEXT = load_page().body.decode("utf-8")
POLICY = dict(part.split(" ", 1) for part in load_page().headers["content-security-policy"].split("; "))


def between(tag):
    return re.findall(rf"<{tag}>(.*?)</{tag}>", TEXT, flags=re.DOTALL)


def test_no_text_is_ever_made_into_markup_or_code():
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML"
    )
    assert not re.findall(rf"{forbidden}|\beval\(|new Function|\bimport\(", TEXT)
    assert not re.findall(r"\s(?:style|on[a-z]+)=", re.sub(r"<(script|style)>.*?</\1>", "", TEXT, flags=re.S))


def test_nothing_comes_from_another_address():
    addresses = re.findall(r"(?:https?:)?//[\w.]+|url\([^)]*\)|@import", re.sub(r"(?m)//\s.*$", "", TEXT))
    assert addresses == ["http://www.w3.org"]  # the namespace in the icon, which is no address
    assert not re.findall(r"<(?:img|iframe|link|script|object|embed)\b[^>]*(?:src|href)=(?!\"data:)", TEXT)


def test_the_policy_allows_the_pages_own_script_and_style_and_its_own_server_alone():
    for tag in ("script", "style"):
        (block,) = between(tag)
        digest = base64.b64encode(hashlib.sha256(block.encode("utf-8")).digest()).decode()
        assert POLICY[f"{tag}-src"] == f"'sha256-{digest}'"
    assert POLICY["default-src"] == POLICY["base-uri"] == POLICY["form-action"] == "'none'"
    assert POLICY["frame-ancestors"] == "'none'"
    assert POLICY["connect-src"] == "'self'"
    assert POLICY["require-trusted-types-for"] == "'script'"


def test_everything_the_script_looks_for_is_there():
    ids = set(re.findall(r'\sid="([\w-]+)"', TEXT))
    (script,) = between("script")
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= ids
    names = re.search(r"const DEFAULTS = \{(.*?)\};", script, flags=re.DOTALL)[1]
    assert {f"set-{name}" for name in re.findall(r"(\w+):", names)} <= ids


def test_an_answer_that_is_begun_goes_on_as_the_whole_one_did(server):
    for model in ("tiny", "plain"):
        settings = {"model": model, "temperature": 0, "max_tokens": 8, "return_token_ids": True}
        (whole,) = server.chat("Hi", **settings).json["choices"]
        ids = whole["token_ids"]
        settings["max_tokens"] = 8 - 3
        (rest,) = server.chat("Hi", **settings, answer_token_ids=ids[:3]).json["choices"]
        assert rest["token_ids"] == ids[3:]
    assert server.chat("Hi", answer_token_ids=[100_000]).error["type"] == "invalid_request_error"
