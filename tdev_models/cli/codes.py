"""The exit codes of `tdev`: what each means, and which error has which."""

from __future__ import annotations

from collections.abc import Mapping

from tdev_models.errors import (
    Conflict,
    InvalidRequest,
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    NotFound,
    TdevError,
    Throttled,
    Unavailable,
    WrongUser,
)

DONE, FAILED, PENDING, REFUSED, NOT_FOUND, AGAIN = range(6)
USAGE, INTERRUPTED, NO_READER = 64, 130, 141

TEXT = """\
exit codes:
  0    done
  1    an error; or what was looked at or done is not well (doctor,
       demo, local, recover, rekey, resume, watch)
  2    changes pending (migrate)
  3    refused: another worker owns it, its status forbids it, or you said no
  4    there is no such session
  5    no answer, throttled, or written by others meanwhile: call again
  64   wrong usage, or a wrong value
  130  interrupted
  141  who read the output has gone
"""

_BY_ERROR: Mapping[type[TdevError], int] = {
    InvalidRequest: USAGE,
    NotFound: NOT_FOUND,
    LeaseHeld: REFUSED,
    LeaseLost: REFUSED,
    InvalidTransition: REFUSED,
    WrongUser: REFUSED,
    Conflict: AGAIN,
    Throttled: AGAIN,
    Unavailable: AGAIN,
}


def code_of(error: Exception) -> int:
    """Return the exit code of an expected error."""
    return next((code for kind, code in _BY_ERROR.items() if isinstance(error, kind)), FAILED)
