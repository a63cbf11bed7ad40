"""Moments and durations as people write and read them: `2 hours ago`, `3h`."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

from tdev_models.errors import InvalidRequest, shown
from tdev_models.results import Session, SessionStatus
from tdev_models.validation import instant

OPEN = (SessionStatus.ACTIVE, SessionStatus.FAILED)
"""The statuses of sessions that go on, or can."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(
    r"(\d+(?:\.\d+)?)\s*"
    r"(s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?|w|weeks?)(?:\s+ago)?"
)

# Eight digits are a day.
_EPOCH_SECONDS = re.compile(r"\d{9,12}(?:\.\d+)?", re.ASCII)


def moment(field: str, text: str) -> float:
    """Return epoch seconds of `2 hours ago`, `90m`, `now`, `yesterday`, ISO 8601 or themselves.

    A date and time may end in ` UTC`, or in the zone that is in force here: so they are shown.

    Raises:
        InvalidRequest: it is none of these.
    """
    words = text.strip().lower()
    if match := _DURATION.fullmatch(words):
        return instant(field, time.time() - float(match[1]) * _UNITS[match[2][0]])
    if words == "now":
        return time.time()
    if words in ("today", "yesterday"):
        day = datetime.now().astimezone().date() - timedelta(days=words == "yesterday")
        # Without this moment's offset: another may have been in force then.
        return datetime.fromisoformat(f"{day}").timestamp()
    at, _, zone = text.strip().rpartition(" ")
    iso = at + "Z" * (zone == "UTC") if zone in ("UTC", *time.tzname) else text
    try:
        found = instant(field, float(words) if _EPOCH_SECONDS.fullmatch(words) else iso)
    except InvalidRequest:
        forms = "'2 hours ago', '90m', 'yesterday', ISO 8601 or epoch seconds"
        raise InvalidRequest(field, f"{shown(text)} is not like {forms}") from None
    if zone in time.tzname and zone != "UTC":
        here = datetime.fromtimestamp(found).astimezone()
        if here.tzname() != zone:  # the second of two hours that are named the same
            return here.replace(tzinfo=None, fold=1).timestamp()
    return found


def fixed(field: str, text: str) -> str:
    """Return a moment as ISO 8601, which stays the same: a cursor is of a query with its bounds."""
    return datetime.fromtimestamp(moment(field, text), UTC).isoformat()


def duration(seconds: float) -> str:
    """Return a duration in its largest unit: `45s`, `12m`, `3h`, `5d`."""
    for unit, size, most in (("s", 1, 100), ("m", 60, 100 * 60), ("h", 3600, 49 * 3600)):
        if abs(seconds) < most:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def ago(moment: float | None) -> str:
    """Return how long ago a moment was; empty without one."""
    return "" if moment is None else duration(max(0.0, time.time() - moment))


def due(moment: float | None) -> str:
    """Return when something is due: `now`, `in 4m`; empty without a moment."""
    if moment is None:
        return ""
    left = moment - time.time()
    return f"in {duration(left)}" if left > 0 else "now"


def resumable(session: Session) -> str:
    """Return when a session can be resumed; empty while its owner moves that on, and at its end."""
    when = due(session.due_at) if session.status in OPEN else ""
    return when if session.status == SessionStatus.FAILED or when == "now" else ""


def local(moment: float | None) -> str:
    """Return a moment as a local date and time, with its zone; empty without one."""
    if moment is None:
        return ""
    try:
        return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    except (ValueError, OverflowError, OSError):  # of another program, say in milliseconds
        return f"{moment:g}"
