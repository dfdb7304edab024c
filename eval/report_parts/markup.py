"""HTML as text, escaped on construction."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_VOID = {"img", "input", "meta"}


class Html(str):
    """Markup that is not escaped again."""


def tag(name: str, /, *children: str | Html, **attributes: str | int | bool | None) -> Html:
    """Build an element from text, markup and attributes.

    ``tag("p", "a < b", class_="x", data_clip="y")`` -> ``<p class="x" data-clip="y">a &lt; b</p>``.

    Text is escaped, :class:`Html` is not. A ``False`` or ``None`` attribute is left out, a ``True`` one has no value.
    """
    rendered = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not False and value is not None
    )
    return Html(f"<{name}{rendered}>") if name in _VOID else Html(f"<{name}{rendered}>{join(*children)}</{name}>")


def join(*parts: str | Html) -> Html:
    """Concatenate parts, escaping those that are plain text."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def json_script(identity: str, content: Any) -> Html:
    """Embed data for the page's script. ``<`` is escaped, so that no text in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{escape(identity)}">{text}</script>')
