"""`tdev report`: the page's views of some days, as one file."""

from __future__ import annotations

import argparse
import asyncio

from tdev_models.cli.codes import DONE
from tdev_models.cli.reports import asked_range
from tdev_models.cli.screen import Screen
from tdev_models.errors import InvalidRequest
from tdev_models.views.weights import weights
from tdev_models.web.report import Asked, report as html


def report(options: argparse.Namespace) -> int:
    """Write the file."""
    start, end = asked_range(options)
    if options.out.is_dir() or not options.out.absolute().parent.is_dir():
        raise InvalidRequest("out", f"{options.out} is no file in a folder that exists")
    comparisons = [_comparison(*one) for one in options.ab]
    screen = Screen(options.json)
    with screen.counting():
        text = asyncio.run(
            html(
                start,
                end,
                language=options.language,
                comparisons=comparisons,
            )
        )
        options.out.write_text(text, encoding="utf-8", errors="replace")
        size = options.out.stat().st_size
        screen.line({"out": str(options.out), "bytes": size})
        screen.print(f"{options.out}: {size / 1000:.0f} kB, for any browser.")
    return DONE


def _comparison(
    agent: str, a: str = "", b: str = "", given: str | None = None, *more: str
) -> Asked:
    if more or not b:
        raise InvalidRequest("ab", "takes AGENT A B, and perhaps weights such as old=9,new=1")
    return agent, a, b, None if given is None else weights("weights", given)
