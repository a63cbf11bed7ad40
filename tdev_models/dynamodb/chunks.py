"""Large JSON: compressed, in immutable chunks beside the item that points at them.

A chunk is an item in the execution's partition. Its sort key names the agent, the field, the
attempt, the fence and the hash of the whole: what is written twice is the same, and what no item
points at is harmless. Chunks are written before the item: half a payload is never seen.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

from tdev_models.dynamodb.client import Client
from tdev_models.errors import PayloadDamaged
from tdev_models.models import AgentExecution
from tdev_models.models.base import typed
from tdev_models.retry import CHUNK_READ_SECONDS, CHUNK_WRITE_SECONDS

INLINE_BYTES = 4 * 1024
# With its keys and overhead a chunk stays below 64 KB: 64 write units.
CHUNK_BYTES = 62 * 1024
_AT_ONCE = 4
_CODEC = "zlib"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the item holds in place of a large payload.

    Attributes:
        codec: how the chunks, put together, become the text; other codecs may come.
        key: what the chunks' sort keys begin with.
        chunks: how many there are.
        size: the text's length in bytes.
        sha256: the text's hash.
    """

    codec: str
    key: str
    chunks: int
    size: int
    sha256: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the envelope of its stored text; what newer releases add is left out."""
        stored: Mapping[str, Any] = json.loads(text)
        return cls(**{name: stored[name] for name in cls.__dataclass_fields__})

    def text(self) -> str:
        """Return the text to store."""
        return json.dumps(asdict(self), separators=(",", ":"))


async def write(
    client: Client,
    execution_id: str,
    key: str,
    text: str,
    *,
    expires_at: float | None,
    stored: str | None,
) -> str:
    """Write the chunks of a JSON text, and return the text of their envelope.

    One UpdateItem for each 62 KB compressed, four at once; safe to send again. Tried for 15
    minutes in all. Nothing is written where `stored`, the envelope that the item has,
    is of the same text.
    """
    data = text.encode()
    digest = hashlib.sha256(data).hexdigest()
    if stored is not None and digest in stored:
        return stored
    compressed = await client.compute(zlib.compress, data)
    pieces = [compressed[at : at + CHUNK_BYTES] for at in range(0, len(compressed), CHUNK_BYTES)]
    # Named after what they hold: another zlib makes other chunks of the same text.
    name = hashlib.sha256(compressed).hexdigest()[:16]
    envelope = Envelope(_CODEC, f"{key}#{name}#", len(pieces), len(data), digest)
    expiry = [] if expires_at is None else [AgentExecution.expires_at.set(expires_at)]
    deadline = time.monotonic() + CHUNK_WRITE_SECONDS

    async def write_chunk(number: int, piece: bytes) -> None:
        await client.executions.update(
            execution_id,
            f"{envelope.key}{number:05}",
            actions=[typed(AgentExecution.chunk, {"B": piece}), *expiry],
            retry_seconds=deadline - time.monotonic(),
        )

    jobs = [partial(write_chunk, number, piece) for number, piece in enumerate(pieces)]
    await client.gather(jobs, _AT_ONCE)
    return envelope.text()


async def read(client: Client, execution_id: str, envelope_text: str) -> Any:
    """Return the value that an envelope points at, read consistently and checked by its hash.

    Tried for 5 minutes in all.

    Raises:
        PayloadDamaged: a chunk is missing or was changed, or the envelope is of a newer release.
    """
    try:
        envelope = Envelope.parse(envelope_text)
    except (ValueError, KeyError):
        unknown = f"{execution_id}, payload {envelope_text[:80]}: damaged, or of a newer release"
        raise PayloadDamaged(unknown) from None
    deadline = time.monotonic() + CHUNK_READ_SECONDS
    pieces: list[bytes] = []
    start = None
    while True:
        page, start = await client.executions.page(
            execution_id,
            range_condition=AgentExecution.agent_name.startswith(envelope.key),
            start=start,
            retry_seconds=deadline - time.monotonic(),
        )
        pieces += [item.chunk for item in page]
        if start is None:
            break
    return await client.compute(_value, execution_id, envelope, pieces)


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
    return json.loads(data)
