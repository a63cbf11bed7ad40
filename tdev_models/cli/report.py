"""`tdev report`: the page's views of some days, as one file."""

from __future__ import annotations

import argparse
import asyncio

from tdev_models.cli.codes import DONE
from tdev_models.cli.reports import asked_range
from tdev_models.cli.screen import Screen
from tdev_models.errors import InvalidRequest
from tdev_models.web.report import report as html


def report(options: argparse.Namespace) -> int:
    """Write the file."""
    start, end = asked_range(options)
    if options.out.is_dir() or not options.out.absolute().parent.is_dir():
        raise InvalidRequest("out", f"{options.out} is no file in a folder that exists")
    screen = Screen(options.json)
    with screen.counting():
        text = asyncio.run(
            html(
                start,
                end,
                language=options.language,
                comparisons=[tuple(one) for one in options.ab],
            )
        )
        options.out.write_text(text, encoding="utf-8", errors="replace")
        size = options.out.stat().st_size
        screen.line({"out": str(options.out), "bytes": size})
        screen.print(f"{options.out}: {size / 1000:.0f} kB, for any browser.")
    return DONE
