"""Reads HTTP answers from the bytes of a connection, without I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import httptools

# An idle connection may be forgotten by what lies on its way: it is used for less long than that.
IDLE_SECONDS: Final = 55.0
_CHECKSUM: Final = b"x-amz-crc32"
# What says where a body ends; without it the connection's end does.
_ENDS: Final = frozenset({b"content-length", b"transfer-encoding"})
_KEPT: Final = frozenset({_CHECKSUM, b"date", b"x-amzn-requestid", b"x-amzn-query-error", *_ENDS})


@dataclass(slots=True)
class Answer:
    """One whole HTTP answer.

    Attributes:
        status: its HTTP status.
        headers: those that somebody reads, by their names in lower case.
        body: what came behind the head.
    """

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Reader:
    """Cuts the bytes of one connection into answers.

    Attributes:
        answer: the answer that has come last, or None while one is incomplete.
        reusable: whether the server keeps the connection open.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.answer: Answer | None = None
        self.reusable = True
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._in_body = False

    def feed(self, data: bytes) -> Answer | None:
        """Take bytes as they come, and return the answer that they complete.

        Raises:
            httptools.HttpParserError: this is no HTTP.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # which is no HttpParserError
            raise httptools.HttpParserError("it turns to another protocol") from None
        return self.answer

    def end(self) -> Answer | None:
        """Return the answer that the end of the connection completes, if there is one."""
        if self._in_body and not any(name.decode() in self._headers for name in _ENDS):
            self.on_message_complete()
        return self.answer

    def begin(self) -> None:
        """Expect the next answer."""
        self.answer = None

    def on_message_begin(self) -> None:
        """Do what `httptools` calls for."""
        self._headers, self._parts, self._in_body = {}, [], False
        if self.answer is not None:  # nobody has asked for it
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Do what `httptools` calls for."""
        lower = name.lower()
        if lower in _KEPT:
            self._headers[lower.decode()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Do what `httptools` calls for."""
        self._in_body = True

    def on_body(self, part: bytes) -> None:
        """Do what `httptools` calls for."""
        self._parts.append(part)

    def on_message_complete(self) -> None:
        """Do what `httptools` calls for."""
        self._in_body, status = False, self._parser.get_status_code()
        if status < 200 or self.answer is not None:  # "continue", or more than was asked for
            return
        self.reusable = self.reusable and self._parser.should_keep_alive()
        self.answer = Answer(status, self._headers, b"".join(self._parts))
