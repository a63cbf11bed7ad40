"""Templates, and what makes any text harmless in them."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tdev_models import settings
from tdev_models.views import moments
from tdev_models.views.attempts import worker
from tdev_models.views.numbers import percent, short
from tdev_models.web.languages import Translate

PAYLOAD_CHARACTERS = 64 * 1024
"""How much of a payload a page shows."""

# Control characters, which HTML forbids, and those that turn the direction of the text around.
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_TEXT = 300

Url = Callable[..., str]
"""Given a page's name and parameters, returns its address, or nothing where it is not there."""


def harmless(value: Any) -> Any:
    """Return what a template shows, without characters that do more than show."""
    if isinstance(value, Markup):
        return value
    return _HARMFUL.sub("\N{REPLACEMENT CHARACTER}", str(value))


def cut(value: Any, most: int = _TEXT) -> str:
    """Return a text of bounded length."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}…"


def payload(value: Any) -> str:
    """Return a payload as JSON, of bounded length: no more of it is made into text."""
    parts, length = list[str](), 0
    for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
        parts.append(part)
        length += len(part)
        if length > PAYLOAD_CHARACTERS:
            break
    return cut("".join(parts), PAYLOAD_CHARACTERS)


def _time(moment: float | None) -> Markup:
    """Return a moment, which the browser may show in the reader's own time."""
    if moment is None:
        return Markup("")
    try:
        at = datetime.fromtimestamp(moment, UTC)
    except (ValueError, OverflowError, OSError):  # of another program, say in milliseconds
        return Markup(f"{moment:g}")
    # Without markup inside: made of numbers alone.
    return Markup(f'<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}">{at:%Y-%m-%d %H:%M:%S} UTC</time>')


def _count(number: float | None) -> str:
    return "" if number is None else f"{int(number):,}"


def _statics() -> dict[str, str]:
    """Return the files that pages load, by name."""
    folder = files("tdev_models.web") / "static"
    return {one.name: one.read_text() for one in sorted(folder.iterdir(), key=str)}


STATIC = _statics()
VERSION = hashlib.blake2b("".join(STATIC.values()).encode(), digest_size=6).hexdigest()

_environment = Environment(
    loader=PackageLoader("tdev_models.web"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=harmless,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(
    ago=moments.ago,
    count=_count,
    cut=cut,
    due=moments.due,
    duration=moments.duration,
    payload=payload,
    percent=percent,
    resumable=moments.resumable,
    short=short,
    time=_time,
    worker=worker,
)


def address(root: str) -> Url:
    """Return what makes the addresses of pages below a root."""

    def url(name: str, **parameters: Any) -> str:
        given = {key: value for key, value in parameters.items() if value not in (None, "")}
        query = urlencode(given, errors="replace")
        return f"{root}/{name}{'?' * bool(query)}{query}"

    return url


def rendered(template: str, t: Translate, url: Url, values: Mapping[str, Any]) -> str:
    """Return a template with values in it, in one language."""
    chosen = settings.current()
    return _environment.get_template(template).render(
        {
            "t": t,
            "url": url,
            "now": time.time(),
            "agents": chosen.agents,
            "place": chosen.table_name("*"),
            "at": chosen.endpoint or chosen.region or "AWS",
            "is_prod": chosen.environment == "prod",
            "version": VERSION,
            "is_report": False,
            **values,
        }
    )
