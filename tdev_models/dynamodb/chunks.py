"""Large JSON: compressed, in immutable chunks beside the item that points at them.

A chunk is an item in the execution's partition. Its sort key names the agent, the field, the
attempt, the fence and the hash of the whole: what is written twice is the same, and what no item
points at is harmless. Chunks are written before the item: half a payload is never seen.

What a claim has stored before is not stored again: an agent's input that is, or holds, the outputs
of others. The chunks of a text with such parts hold a list of them, a line feed, and the rest.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import operator
import time
import zlib
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Self, TypeAlias

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.encryption import decrypt, encrypt
from tdev_models.dynamodb.parts import MOST_PARTS, StoredText, cut, edges, join
from tdev_models.dynamodb.slots import Slots
from tdev_models.errors import PayloadDamaged, shown
from tdev_models.json_decoding import PIECE, decode
from tdev_models.json_form import JSON_BYTES
from tdev_models.models import AgentExecution
from tdev_models.models.base import typed
from tdev_models.retry import CHUNK_READ_SECONDS, CHUNK_WRITE_SECONDS
from tdev_models.security.fields import ENVELOPES, Place, encrypts

# A payload above this is written once, compressed, in a chunk; one in the item twice, by the begin
# and the end of its agent, in transactions, which count double (docs/adr/0022).
INLINE_BYTES = 1024
# With its keys and overhead a chunk stays below 64 KB: 64 write units.
CHUNK_BYTES = 62 * 1024
_CODEC, _CODEC_WITH_PARTS = "zlib", "zlib-parts"
# The list of a text's parts, each with its envelope.
_HEADER_BYTES = 64 * 1024

# How many requests for chunks a process has under way, the pauses between their tries included. It
# leaves connections to small requests and, where chunks are throttled, capacity to small writes.
# More would not be faster: compression takes as long.
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
        kms_key: under which key they are encrypted. The envelope is so, too, and tells nobody
            size or hash; where it stands in clear it may point at chunks in clear alone.
    """

    codec: str
    key: str
    chunks: int
    size: int
    sha256: str
    execution_id: str | None = None
    kms_key: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the envelope of its stored text; what newer releases add is left out.

        Raises:
            AttributeError, TypeError, ValueError: it is no envelope of this release.
        """
        return cls.of(decode(text))

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Return the envelope of its stored fields; it raises as `parse` does."""
        known = cls.__dataclass_fields__.keys() & stored.keys()
        envelope = cls(**{name: stored[name] for name in known})
        if not (0 <= envelope.size <= JSON_BYTES and envelope.key.encode()):
            raise ValueError("no size, or no key, of what was written")
        # Half of what a chunk may hold: other releases may cut otherwise.
        if not 1 <= envelope.chunks <= 2 + 2 * envelope.most_bytes // CHUNK_BYTES:
            raise ValueError("more chunks than a text of its size has, or none")
        if envelope.execution_id is not None and not envelope.execution_id.encode():
            raise ValueError("no id of an execution")
        return envelope

    @property
    def most_bytes(self) -> int:
        """How many bytes its chunks have at most: of an encrypted text that is not compressible."""
        return self.size + self.size // 64 + 2 * _HEADER_BYTES

    def text_in(self, execution_id: str) -> str:
        """Return the text to store in an execution."""
        stored = asdict(self)
        if self.execution_id in (None, execution_id):
            del stored["execution_id"]
        if self.kms_key is None:
            del stored["kms_key"]
        return json.dumps(stored, separators=(",", ":"))


Stored: TypeAlias = MutableMapping[str, StoredText[Envelope]]
"""What is stored in chunks, by the hash of its text."""


def field_of(key: str) -> str:
    """Return of which field a chunk is, by its sort key or by the key of its envelope."""
    field = key.partition("#")[2].partition("#")[0]
    return "output_data" if field == "once" else field  # the result of a side effect


def lies_among(envelope_text: str, fields: Collection[str]) -> bool:
    """Return whether what an envelope points at may lie, as a whole or in parts, in these fields.

    A damaged envelope may, too.
    """
    try:
        envelope = Envelope.parse(envelope_text)
    except (AttributeError, TypeError, ValueError):
        return True
    return envelope.codec != _CODEC or field_of(envelope.key) in fields


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
    stored: Stored,
    kms_key: str | None = None,
    retry_seconds: float | None = None,
) -> str:
    """Write the chunks of a JSON text, and return the text of their envelope.

    With a `kms_key` they are encrypted, and the envelope is to be; KMS is tried for
    `retry_seconds`.

    One UpdateItem for each 62 KB compressed, four at once in this process; safe to send again. The
    first goes alone: chunks without it are of no write under way (`tdev rekey` deletes them).
    Given up when for 15 minutes the process could store no chunk of any payload. What `stored` has
    is pointed at and not written again, be it the whole text or a part; the text is added to it.
    """
    # Chunks in clear of another field may be deleted, once that is encrypted.
    secret = any(encrypts(client.settings, field) for field in ENVELOPES.values())
    shares = kms_key is not None or not secret
    packed = await client.compute(_packed, text, stored if shares else {}, kms_key)
    if packed.is_stored:
        return stored[packed.digest].place.text_in(execution_id)
    whole = packed.compressed
    if kms_key is not None:
        whole = await encrypt(client, _place(execution_id, key), whole, retry_seconds)
    pieces = [whole[at : at + CHUNK_BYTES] for at in range(0, len(whole), CHUNK_BYTES)]
    # Named after what they hold: another zlib makes other chunks of the same text.
    name = hashlib.sha256(whole).hexdigest()[:16]
    envelope = Envelope(
        packed.codec, f"{key}#{name}#", len(pieces), packed.size, packed.digest, kms_key=kms_key
    )
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
    await jobs[0]()
    await client.gather(jobs[1:], AT_ONCE)
    place = replace(envelope, execution_id=execution_id)
    stored[packed.digest] = StoredText(place, packed.size, packed.digest, *packed.edges)
    return envelope.text_in(execution_id)


async def read(
    client: Client,
    execution_id: str,
    envelope_text: str,
    stored: Stored | None = None,
    *,
    encrypted: bool = False,
) -> Any:
    """Return the value that an envelope points at, read consistently and checked by its hash.

    The text is added to `stored`. `encrypted`: the envelope was.

    Four Queries at once in this process. Given up when for 5 minutes none of them succeeded.

    Raises:
        PayloadDamaged: a chunk is missing or was changed, or the envelope is of a newer release.
    """
    envelope, data = await read_bytes(client, execution_id, envelope_text, encrypted=encrypted)
    value = await client.compute(_value, execution_id, envelope, data)
    if stored is not None:
        place = replace(envelope, execution_id=envelope.execution_id or execution_id)
        stored[envelope.sha256] = StoredText(place, len(data), envelope.sha256, *edges(data))
    return value


async def read_bytes(
    client: Client, execution_id: str, envelope_text: str, *, encrypted: bool
) -> tuple[Envelope, bytes]:
    """Return an envelope and the text that it points at, checked by its hash; else as `read`."""
    try:
        envelope = Envelope.parse(envelope_text)
    except (AttributeError, TypeError, ValueError):
        unknown = f"{execution_id}, payload {envelope_text[:80]}: damaged, or of a newer release"
        raise PayloadDamaged(unknown) from None
    damage = f"{execution_id}, payload {envelope.key}"
    if (envelope.kms_key is not None) != encrypted:
        raise PayloadDamaged(f"{damage}: its chunks are encrypted, and what points at them is not")
    data = await _read_bytes(client, execution_id, envelope, with_parts=True)
    if len(data) != envelope.size or await client.compute(_sha256, data) != envelope.sha256:
        raise PayloadDamaged(f"{damage}: its hash is not that of what was written")
    return envelope, data


async def _read_bytes(
    client: Client, execution_id: str, envelope: Envelope, *, with_parts: bool
) -> bytes:
    """Return the text that an envelope points at, unchecked but for its size."""
    damage = f"{execution_id}, payload {envelope.key}"
    if envelope.codec != _CODEC and not (with_parts and envelope.codec == _CODEC_WITH_PARTS):
        codec = shown(envelope.codec)
        raise PayloadDamaged(f"{damage}: of codec {codec}, which this release cannot read")
    holder = envelope.execution_id or execution_id
    pieces = await _read_chunks(client, holder, envelope)
    if len(pieces) != envelope.chunks:
        raise PayloadDamaged(f"{damage}: {len(pieces)} of {envelope.chunks} chunks are there")
    if envelope.kms_key is not None:
        place = _place(holder, envelope.key.removesuffix("#").rpartition("#")[0])
        pieces = [await decrypt(client, place, b"".join(pieces))]
    try:
        data: bytes = await client.compute(_inflated, pieces, envelope)
        if envelope.codec == _CODEC:
            return data
        header, _, rest = data.partition(b"\n")
        parts = _parts_of(header, envelope)
    except (AttributeError, TypeError, ValueError, zlib.error) as error:
        raise PayloadDamaged(f"{damage}: {error}") from None
    jobs = [partial(_read_bytes, client, execution_id, part, with_parts=False) for _, part in parts]
    texts = await client.gather(jobs, AT_ONCE)
    try:
        starts = [start for start, _ in parts]
        return await client.compute(join, rest, list(zip(starts, texts, strict=True)))
    except ValueError as error:
        raise PayloadDamaged(f"{damage}: {error}") from None


async def _read_chunks(client: Client, execution_id: str, envelope: Envelope) -> list[bytes]:
    begun = time.monotonic()
    pieces: list[bytes] = []
    start = None
    while True:
        async with _reads.taken(client):
            page, start = await client.executions.page(
                execution_id,
                range_condition=AgentExecution.agent_name.startswith(envelope.key),
                start=start,
                retry_seconds=_reads.seconds_left(CHUNK_READ_SECONDS, begun),
            )
        pieces += [item.chunk or b"" for item in page]
        if sum(map(len, pieces)) > envelope.most_bytes:
            raise PayloadDamaged(f"{execution_id}, payload {envelope.key}: larger than it says")
        if start is None or len(pieces) > envelope.chunks:
            return pieces


@dataclass(frozen=True, slots=True)
class _Packed:
    codec: str
    size: int
    digest: str
    compressed: bytes = field(repr=False)
    edges: tuple[bytes, bytes] = field(repr=False)

    @property
    def is_stored(self) -> bool:
        return not self.compressed


def _place(execution_id: str, key: str) -> Place:
    """Return what encrypted chunks are bound to: where they stand, whoever points at them."""
    return Place(AgentExecution.Meta.table, (execution_id, key), "chunk")


def _packed(text: str, stored: Stored, kms_key: str | None) -> _Packed:
    """Return a text compressed, if it is not stored as it is to be: in clear, or under a key."""
    data = b"".join(text[at : at + PIECE].encode() for at in range(0, len(text), PIECE))
    digest = hashlib.sha256(data).hexdigest()
    same = {name: one for name, one in [*stored.items()] if one.place.kms_key == kms_key}
    if digest in same:
        return _Packed(_CODEC, len(data), digest, b"", edges(data))
    # One that has parts itself is no part of another: reading stays two requests deep.
    whole = [text for text in same.values() if text.place.codec == _CODEC]
    parts, rest = cut(data, whole)
    listed = [[start, asdict(place)] for start, place in parts]
    header = json.dumps(listed, separators=(",", ":")).encode()
    # Long ids make a long list, which readers would refuse.
    if not parts or len(header) > _HEADER_BYTES:
        return _Packed(_CODEC, len(data), digest, zlib.compress(data), edges(data))
    compressed = zlib.compress(header + b"\n" + rest)
    return _Packed(_CODEC_WITH_PARTS, len(data), digest, compressed, edges(data))


def _inflated(pieces: Sequence[bytes], envelope: Envelope) -> bytes:
    # One byte more than declared is enough to know that the envelope is wrong.
    most = envelope.size + 1 + (_HEADER_BYTES if envelope.codec == _CODEC_WITH_PARTS else 0)
    return zlib.decompressobj().decompress(b"".join(pieces), most)


def _parts_of(header: bytes, envelope: Envelope) -> list[tuple[int, Envelope]]:
    """Return where in a text which parts stand.

    Raises:
        AttributeError, TypeError, ValueError: it is no header that `write` has made.
    """
    if len(header) > _HEADER_BYTES:
        raise ValueError("the list of its parts is too long")
    listed = decode(header.decode())
    parts = [(operator.index(start), Envelope.of(stored)) for start, stored in listed]
    if len(parts) > MOST_PARTS or sum(part.size for _, part in parts) > envelope.size:
        raise ValueError("its parts are larger than itself")
    if any(part.kms_key != envelope.kms_key for _, part in parts):
        raise ValueError("its parts are not encrypted as it is itself")
    return parts


def _value(execution_id: str, envelope: Envelope, data: bytes) -> Any:
    parts = (data[at : at + PIECE] for at in range(0, len(data), PIECE))
    try:
        return decode("".join(codecs.iterdecode(parts, "utf-8")))
    except ValueError as error:
        raise PayloadDamaged(f"{execution_id}, payload {envelope.key}: {error}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
