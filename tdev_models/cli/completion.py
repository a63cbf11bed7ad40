"""`tdev completion`: a script by which a shell completes commands and options."""

from __future__ import annotations

import argparse
import sys

import shtab

from tdev_models.cli.codes import DONE
from tdev_models.cli.commands import parser


def completion(options: argparse.Namespace) -> int:
    """Print the script."""
    sys.stdout.write(shtab.complete(parser(forwarded=True), options.shell) + "\n")
    return DONE
