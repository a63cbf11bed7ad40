"""The head of a request: its HTTP headers, signed with AWS's Signature Version 4."""

from __future__ import annotations

import hmac
import re
import time
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import Any, Final

from tdev_models.errors import ConfigurationError

_CLOCK_TOLERANCE_SECONDS: Final = 60.0
_PLAIN: Final = "content-type;host;x-amz-date;x-amz-target"
_WITH_TOKEN: Final = "content-type;host;x-amz-date;x-amz-security-token;x-amz-target"


class Signer:
    """Makes the heads of requests to one endpoint.

    Attributes:
        skew_seconds: how far the store's clock is ahead of this machine's, where that was so much
            that the store refused a signature.
    """

    def __init__(self, host: str, region: str, service: str, user_agent: str) -> None:
        self._host, self._scope, self.skew_seconds = host, f"{region}/{service}/aws4_request", 0.0
        # AWS_EXECUTION_ENV stands in it as it is, be it with line breaks.
        self._agent = re.sub(r"[^ -~]", "-", user_agent)
        self._second: tuple[int, str] = (-1, "")
        self._key: tuple[tuple[str | None, ...], bytes] = ((), b"")

    def head(self, operation: str, body: bytes, credentials: Any) -> bytes:
        """Return the head of the request that sends `body` now, with the empty line at its end.

        Raises:
            ConfigurationError: a credential holds a line break, or what is no text.
        """
        stamp = self._stamp()
        key = self._signing_key(stamp[:8], credentials)
        target, token = f"DynamoDB_20120810.{operation}", credentials.token
        names, signed_token, sent_token = _PLAIN, "", ""
        if token:
            names, signed_token = _WITH_TOKEN, f"x-amz-security-token:{' '.join(token.split())}\n"
            sent_token = f"X-Amz-Security-Token: {token}\r\n"
        canonical = (
            f"POST\n/\n\ncontent-type:application/x-amz-json-1.0\nhost:{self._host}\n"
            f"x-amz-date:{stamp}\n{signed_token}x-amz-target:{target}\n\n{names}\n"
            f"{sha256(body).hexdigest()}"
        )
        scope = f"{stamp[:8]}/{self._scope}"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
        return (
            f"POST / HTTP/1.1\r\nHost: {self._host}\r\nUser-Agent: {self._agent}\r\n"
            "Accept-Encoding: identity\r\nContent-Type: application/x-amz-json-1.0\r\n"
            f"Content-Length: {len(body)}\r\nX-Amz-Date: {stamp}\r\nX-Amz-Target: {target}\r\n"
            f"{sent_token}Authorization: AWS4-HMAC-SHA256 "
            f"Credential={credentials.access_key}/{scope}, SignedHeaders={names}, "
            f"Signature={signature}\r\n\r\n"
        ).encode()

    def corrects(self, date: str | None, signed_with: float) -> bool:
        """Take the time of an answer's `Date` for the next signatures, and return whether.

        It does where the clock that was signed with is off by more than a minute. What it was off
        by then is given: another request's answer may have corrected it since.
        """
        try:
            there = parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return False
        skew = there - time.time()
        if abs(skew - signed_with) < _CLOCK_TOLERANCE_SECONDS:
            return False
        self.skew_seconds = skew
        return True

    def _stamp(self) -> str:
        second = int(time.time() + self.skew_seconds)
        known, stamp = self._second
        if second != known:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
            self._second = second, stamp
        return stamp

    def _signing_key(self, day: str, credentials: Any) -> bytes:
        parts = (credentials.access_key, credentials.secret_key, credentials.token)
        known, key = self._key
        if known != (day, *parts):
            # Bytes of a variable that are no UTF-8 become surrogates, which cannot be printed.
            if not all(part.isprintable() for part in parts if part):
                raise ConfigurationError(
                    "the AWS credentials hold a line break, or what is no text; remove it"
                )
            key = f"AWS4{credentials.secret_key}".encode()
            for part in (day, *self._scope.split("/")):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key = (day, *parts), key
        return key
