"""What the log says, as a line: ids and messages in it are the users' own."""

from __future__ import annotations

import json
import logging

from tdev_models.errors import plain


class AsText(logging.Formatter):
    """Formats what the log says as a line of plain text."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return plain(super().formatMessage(record))


class AsJson(logging.Formatter):
    """Formats what the log says as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {"at": record.created, "level": record.levelname, "message": record.getMessage()}
        return json.dumps(fields)
