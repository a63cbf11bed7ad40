"""The weights of an A/B test's variants as people write them: `old=9,new=1`."""

from __future__ import annotations

import re

from tdev_models.errors import InvalidRequest, shown

_WEIGHT = re.compile(r"(.+?)=(\d+(?:\.\d+)?)(?:,\s*|\Z)", re.ASCII)


def weights(field: str, text: str) -> dict[str, float]:
    """Return each variant's weight. Names may hold `=` and `,`, though not `=9,`.

    Raises:
        InvalidRequest: it has another form, or a variant twice.
    """
    found, place = dict[str, float](), 0
    while place < len(text) or not found:
        match = _WEIGHT.match(text, place)
        if match is None or match[1] in found:
            raise InvalidRequest(field, f"{shown(text)} is not like 'old=9,new=1'")
        found[match[1]], place = float(match[2]), match.end()
    return found
