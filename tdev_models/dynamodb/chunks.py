"""Large JSON: compressed, in immutable chunks beside the item that points at them.

A chunk is an item in the execution's partition. Its sort key names the agent, the field, the
attempt, the fence and the hash of the whole: what is written twice is the same, and what no item
points at is harmless. Chunks are written before the item: half a payload is never seen. What a
session's claim has stored before is not stored again: an agent's input that is another's output.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import time
import zlib
from collections.abc import Container, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Self

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.slots import Slots
from tdev_models.errors import PayloadDamaged
from tdev_models.json_decoding import PIECE, decode
from tdev_models.json_form import JSON_BYTES
from tdev_models.models import AgentExecution
from tdev_models.models.base import typed
from tdev_models.retry import CHUNK_READ_SECONDS, CHUNK_WRITE_SECONDS

# A payload above this is written once, compressed, in a chunk; one in the item twice, by the begin
# and the end of its agent, in transactions, which count double (docs/adr/0022).
INLINE_BYTES = 1024
# With its keys and overhead a chunk stays below 64 KB: 64 write units.
CHUNK_BYTES = 62 * 1024
_CODEC = "zlib"

# How many requests for chunks a process has under way, the pauses between their tries included. It
# leaves threads to small requests and, where chunks are throttled, capacity to small writes. More
# would not be faster: compression takes as long.
AT_ONCE = 4
_reads, _writes = Slots(AT_ONCE), Slots(AT_ONCE)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the item holds in place of a large payload.

    Attributes:
        codec: how the chunks, put together, become the text; other codecs may come.
        key: what the chunks' sort keys begin with.
        chunks: how many there are.
        size: the text's length in bytes.
        sha256: the text's hash.
        execution_id: whose partition holds the chunks, where it is another execution's.
    """

    codec: str
    key: str
    chunks: int
    size: int
    sha256: str
    execution_id: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the envelope of its stored text; what newer releases add is left out.

        Raises:
            AttributeError, TypeError, ValueError: it is no envelope of this release.
        """
        stored: Mapping[str, Any] = decode(text)
        known = cls.__dataclass_fields__.keys() & stored.keys()
        envelope = cls(**{name: stored[name] for name in known})
        if not (0 <= envelope.size <= JSON_BYTES and envelope.chunks and envelope.key.encode()):
            raise ValueError("no size, or no key, of what was written")
        if envelope.execution_id is not None and not envelope.execution_id.encode():
            raise ValueError("no id of an execution")
        return envelope

    def text_in(self, execution_id: str) -> str:
        """Return the text to store in an execution."""
        stored = asdict(self)
        if self.execution_id in (None, execution_id):
            del stored["execution_id"]
        return json.dumps(stored, separators=(",", ":"))


def is_large(text: str) -> bool:
    """Return whether a text is too large to stand in the item."""
    return len(text) > INLINE_BYTES or len(text.encode()) > INLINE_BYTES


async def write(
    client: Client,
    execution_id: str,
    key: str,
    text: str,
    *,
    expires_at: float | None,
    stored: MutableMapping[str, Envelope],
) -> str:
    """Write the chunks of a JSON text, and return the text of their envelope.

    One UpdateItem for each 62 KB compressed, four at once in this process; safe to send again.
    Given up when for 15 minutes the process could store no chunk of any payload. Nothing is
    written where `stored` has the same text under its hash; it is added to.
    """
    size, digest, compressed = await client.compute(_compressed, text, stored)
    if known := stored.get(digest):
        return known.text_in(execution_id)
    pieces = [compressed[at : at + CHUNK_BYTES] for at in range(0, len(compressed), CHUNK_BYTES)]
    # Named after what they hold: another zlib makes other chunks of the same text.
    name = hashlib.sha256(compressed).hexdigest()[:16]
    envelope = Envelope(_CODEC, f"{key}#{name}#", len(pieces), size, digest)
    expiry = [] if expires_at is None else [AgentExecution.expires_at.set(expires_at)]
    begun = time.monotonic()

    async def write_chunk(number: int, piece: bytes) -> None:
        async with _writes.taken(client):
            # Unlike `Table.update` it does not hand back what it has stored.
            request = client.executions.requests.update(
                execution_id,
                f"{envelope.key}{number:05}",
                actions=[typed(AgentExecution.chunk, {"B": piece}), *expiry],
            )
            await client.sender.send(
                *request, retry_seconds=_writes.seconds_left(CHUNK_WRITE_SECONDS, begun)
            )

    jobs = [partial(write_chunk, number, piece) for number, piece in enumerate(pieces)]
    await client.gather(jobs, AT_ONCE)
    stored[digest] = replace(envelope, execution_id=execution_id)
    return envelope.text_in(execution_id)


async def read(client: Client, execution_id: str, envelope_text: str) -> Any:
    """Return the value that an envelope points at, read consistently and checked by its hash.

    Four Queries at once in this process. Given up when for 5 minutes none of them succeeded.

    Raises:
        PayloadDamaged: a chunk is missing or was changed, or the envelope is of a newer release.
    """
    try:
        envelope = Envelope.parse(envelope_text)
    except (AttributeError, TypeError, ValueError):
        unknown = f"{execution_id}, payload {envelope_text[:80]}: damaged, or of a newer release"
        raise PayloadDamaged(unknown) from None
    begun = time.monotonic()
    pieces: list[bytes] = []
    start = None
    while True:
        async with _reads.taken(client):
            page, start = await client.executions.page(
                envelope.execution_id or execution_id,
                range_condition=AgentExecution.agent_name.startswith(envelope.key),
                start=start,
                retry_seconds=_reads.seconds_left(CHUNK_READ_SECONDS, begun),
            )
        pieces += [item.chunk or b"" for item in page]
        if start is None or len(pieces) > envelope.chunks:
            break
    return await client.compute(_value, execution_id, envelope, pieces)


def _compressed(text: str, stored: Container[str]) -> tuple[int, str, bytes]:
    """Return the size and the hash of a text, and itself compressed, if it is not stored."""
    data = b"".join(text[at : at + PIECE].encode() for at in range(0, len(text), PIECE))
    digest = hashlib.sha256(data).hexdigest()
    return len(data), digest, b"" if digest in stored else zlib.compress(data)


def _value(execution_id: str, envelope: Envelope, pieces: Sequence[bytes]) -> Any:
    damage = f"{execution_id}, payload {envelope.key}"
    if envelope.codec != _CODEC:
        raise PayloadDamaged(f"{damage}: of codec {envelope.codec}, which this release cannot read")
    if len(pieces) != envelope.chunks:
        raise PayloadDamaged(f"{damage}: {len(pieces)} of {envelope.chunks} chunks are there")
    inflater = zlib.decompressobj()
    try:
        # One byte more than declared is enough to know that the envelope is wrong.
        data = inflater.decompress(b"".join(pieces), envelope.size + 1)
    except zlib.error as error:
        raise PayloadDamaged(f"{damage}: {error}") from None
    if len(data) != envelope.size or hashlib.sha256(data).hexdigest() != envelope.sha256:
        raise PayloadDamaged(f"{damage}: its hash is not that of what was written")
    parts = (data[at : at + PIECE] for at in range(0, len(data), PIECE))
    try:
        return decode("".join(codecs.iterdecode(parts, "utf-8")))
    except ValueError as error:
        raise PayloadDamaged(f"{damage}: {error}") from None
