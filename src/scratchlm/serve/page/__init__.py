r"""The chat page: index.html comes in, the bytes and headers of the answer go out.

    index.html    <style>...</style>  <script>...</script>
                        |                   |
                     sha256              sha256
                        v                   v
    Content-Security-Policy: default-src 'none'; style-src 'sha256-...'; script-src 'sha256-...'; ...

The page is one file that fetches nothing but this server's answers. The policy lets exactly its own script
and style run: markup that a person or a model wrote could neither run nor load anything, and with Trusted
Types no text can be made into markup at all (the page builds text nodes).

Source: https://www.w3.org/TR/CSP3/, section 6.7.3.3 (hashes); https://www.w3.org/TR/trusted-types/
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("index.html")


class Page(NamedTuple):
    """An answer to GET /."""

    body: bytes
    """The page."""
    headers: dict[str, str]
    """What a browser is told about it; among them what it may run."""


def load_page() -> Page:
    """Read the page and allow what stands in it."""
    text = FILE.read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(text, "script"),
        "style-src": _hashes(text, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": "; ".join(f"{name} {sources}" for name, sources in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }
    return Page(text.encode("utf-8"), headers)


def _hashes(text: str, tag: str) -> str:
    """The sources that allow the blocks of one tag: a browser hashes what stands between the tags."""
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(block.encode("utf-8")).digest()).decode() for block in blocks]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
