"""What every page shares: the template environment, and text that a page can show whatever it holds."""

from typing import TYPE_CHECKING, Any

from scratchlm.study import units

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(**filters: Any) -> "Environment":
    """The templates of this package; everything is escaped but our own drawings."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("scratchlm.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        count=units.count,
        decimal=units.decimal,
        percent=units.percent,
        size=units.size,
        visible=visible,
        spaces=show_spaces,
        **filters,
    )
    return made


def rendered(template: str, values: dict[str, Any], **filters: Any) -> str:
    """The page; half of a surrogate pair, which JSON can hold, is no character and becomes "?"."""
    html = environment(**filters).get_template(template).render(values)
    return html.encode("utf-8", errors="replace").decode("utf-8")


def visible(text: object) -> str:
    r"""Replace control characters, which HTML forbids, by their pictures; line breaks and tabs stay.

    Example: "a\x00b" -> "a" U+2400 "b".
    """
    return "".join(
        chr(0x2400 + ord(character)) if ord(character) < 32 and character not in "\n\t"
        else "\N{SYMBOL FOR DELETE}" if character == "\x7f"
        else "\N{REPLACEMENT CHARACTER}" if 0x80 <= ord(character) < 0xA0
        else character
        for character in str(text)
    )  # fmt: skip


def show_spaces(text: str) -> str:
    """Blanks and line breaks of a token as characters that can be seen."""
    return visible(
        text.replace(" ", "\N{OPEN BOX}").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
        .replace("\t", "\N{RIGHTWARDS ARROW TO BAR}")
    )  # fmt: skip
