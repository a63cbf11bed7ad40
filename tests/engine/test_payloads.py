"""Payloads of every size, written before they are pointed at and checked when read."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
import zlib
from collections.abc import Mapping
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    PayloadDamaged,
    RequestEvent,
    Settings,
    StoreError,
    get_agent_execution,
    get_agent_executions,
    get_failed_executions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tdev_models.settings import Transport
from tests import raw
from tests.engine.pipelines import files
from tests.faults import Fault, injected

TABLE = "agent-executions"


def chunks(store: Settings) -> list[dict[str, Any]]:
    return [item for item in raw.everything(store, TABLE) if "chunk" in item]


async def test_ten_megabytes_come_back_equal(strict_store: Settings) -> None:
    large = files(10_000_000)
    with pytest.raises(KeyError):
        async with track_session("p") as session:
            async with session.agent("nl_input", large) as run:
                run.output = large
            raise KeyError
    execution = await get_agent_execution("p-nl_input")
    assert execution.input_data == execution.output_data == large
    assert (await resume_pipeline("p")).outputs == {"nl_input": large}
    sizes = [len(item["chunk"]["B"]) for item in chunks(strict_store)]
    assert max(sizes) <= 62 * 1024
    assert len(sizes) > 10


@pytest.mark.parametrize("size", [1000, 1024, 1025, 70_000, 400_000])
async def test_a_payload_of_any_size_comes_back_and_can_be_replaced(
    store: Settings, size: int
) -> None:
    text = "".join(random.Random(size).choices("0123456789abcdef", k=size - 2))
    for value in (text, "small", text, None):
        await update_agent_execution(
            execution_id="p-parser", status="COMPLETED", output_data=f'"{value}"' if value else None
        )
    assert (await get_agent_execution("p-parser")).output_data == text
    small = await update_agent_execution(execution_id="p-parser", output_data='"small"')
    assert small.output_data == "small"
    stored = raw.item(store, TABLE, "p-parser", "parser")
    assert stored is not None
    assert "output_ref" not in stored


async def test_status_changes_do_not_rewrite_payloads(strict_store: Settings) -> None:
    await update_agent_execution(
        execution_id="p-parser", status="RUNNING", input_data=files(400_000)
    )
    events: list[RequestEvent] = []
    with settings.use(strict_store, on_request=events.append):
        await update_agent_execution(execution_id="p-parser", status="FAILED")
    writes = ("UpdateItem", "TransactWriteItems")
    assert sum(one.units for one in events if one.operation in writes) <= 10


async def test_lists_read_no_payloads(strict_store: Settings) -> None:
    await update_agent_execution(
        execution_id="p-parser", status="FAILED", output_data=files(400_000)
    )
    events: list[RequestEvent] = []
    with settings.use(strict_store, on_request=events.append):
        (one,) = await get_agent_executions("p")
        await get_failed_executions()
    assert one.output_data is None
    assert [event.operation for event in events] == ["Query", "Query", "TransactGetItems"]
    assert sum(event.units for event in events) <= 5


@pytest.mark.parametrize("nth", [1, 3])
async def test_half_a_payload_is_never_seen(store: Settings, nth: int) -> None:
    await update_agent_execution(execution_id="p-parser", status="RUNNING", output_data=["before"])
    with injected(Fault("broken", operation="UpdateItem", nth=nth)), pytest.raises(StoreError):
        noise = [random.Random(number).random() for number in range(30_000)]  # 4 chunks
        await update_agent_execution(execution_id="p-parser", status="COMPLETED", output_data=noise)
    execution = await get_agent_execution("p-parser")
    assert (execution.status, execution.output_data) == ("RUNNING", ["before"])


@pytest.mark.parametrize("kind", ["resent", "throttled", "unanswered", "lost"])
async def test_a_faulty_request_of_a_chunk_is_sent_again(store: Settings, kind: str) -> None:
    value = files(60_000)
    with injected(Fault(kind, operation="UpdateItem")):
        await update_agent_execution(execution_id="p-parser", output_data=value)
    with injected(Fault("throttled", operation="Query")):
        assert (await get_agent_execution("p-parser")).output_data == value


HARMS = {
    "codec": ('"zlib"', '"kms"'),
    "form": ('"key":', '"keys":'),
    "size": ('"size":', '"size":9'),
    "kind": ('"chunks":', '"chunks":[1],"chunk":'),
}


@pytest.mark.parametrize("harm", ["changed", "missing", "bomb", *HARMS])
async def test_a_damaged_payload_names_itself(store: Settings, harm: str) -> None:
    await update_agent_execution(execution_id="p-parser", output_data=files(60_000))
    (chunk,) = chunks(store)
    key = chunk["execution_id"]["S"], chunk["agent_name"]["S"]
    if harm == "changed":
        data = zlib.decompress(chunk["chunk"]["B"]).replace(b"return", b"RETURN")
        raw.put_attribute(store, TABLE, *key, chunk={"B": zlib.compress(data)})
    elif harm == "bomb":
        raw.put_attribute(store, TABLE, *key, chunk={"B": zlib.compress(b"0" * 50_000_000)})
    elif harm == "missing":
        raw.delete(store, TABLE, *key)
    else:
        stored = raw.item(store, TABLE, "p-parser", "parser")
        assert stored is not None
        newer = stored["output_ref"]["S"].replace(*HARMS[harm])
        raw.put_attribute(store, TABLE, "p-parser", "parser", output_ref={"S": newer})
    with pytest.raises(PayloadDamaged, match=r"p-parser, payload .*parser#output_data#0#0#"):
        await get_agent_execution("p-parser")
    assert len(await get_agent_executions("p")) == 1


@pytest.mark.parametrize("text", [b"[" + b"[]," * 11_000_000 + b"[]]", b"[" * 30_000_000])
async def test_a_bomb_in_a_payload_is_refused_before_it_costs_memory(
    strict_store: Settings, text: bytes
) -> None:
    await update_agent_execution(execution_id="p-parser", output_data=files(60_000))
    (chunk,) = chunks(strict_store)
    packed, digest = zlib.compress(text), hashlib.sha256(text).hexdigest()
    envelope = {"codec": "zlib", "key": chunk["agent_name"]["S"][:-5], "chunks": 1}
    envelope |= {"size": len(text), "sha256": digest}
    key = chunk["execution_id"]["S"], chunk["agent_name"]["S"]
    raw.put_attribute(strict_store, TABLE, *key, chunk={"B": packed})
    stored = {"S": json.dumps(envelope)}
    raw.put_attribute(strict_store, TABLE, "p-parser", "parser", output_ref=stored)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadDamaged, match=r"more than 1,000,000 values|nested more than"):
            await get_agent_execution("p-parser")
        assert tracemalloc.get_traced_memory()[1] < 300_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "forged", [{"chunks": 10**9}, {"chunks": 12}, {"chunks": 0}, {"size": 10**12}, {"size": -1}]
)
async def test_what_an_envelope_declares_bounds_what_is_read(
    strict_store: Settings, forged: dict[str, int]
) -> None:
    await update_agent_execution(execution_id="p-parser", output_data=files(60_000))
    (chunk,) = chunks(strict_store)
    key = chunk["agent_name"]["S"][:-5]
    for number in range(12):
        raw.put_attribute(
            strict_store, TABLE, "p-parser", f"{key}{number:05}", chunk={"B": bytes(300_000)}
        )
    envelope = {"codec": "zlib", "key": key, "chunks": 3, "size": 9, "sha256": "0" * 64} | forged
    stored = {"S": json.dumps(envelope)}
    raw.put_attribute(strict_store, TABLE, "p-parser", "parser", output_ref=stored)
    queries: list[RequestEvent] = []
    with settings.use(on_request=queries.append), pytest.raises(PayloadDamaged, match=r"p-parser"):
        await get_agent_execution("p-parser")
    assert len([event for event in queries if event.operation == "Query"]) <= 1  # of four


async def test_the_same_input_again_is_not_written_again(store: Settings) -> None:
    value = files(60_000)
    for status in ("RUNNING", "FAILED", "RUNNING"):
        await update_agent_execution(execution_id="p-parser", status=status, input_data=value)
    assert len(chunks(store)) == 1
    await update_agent_execution(execution_id="p-parser", input_data=[*value])
    assert (await get_agent_execution("p-parser")).input_data == [*value]


async def test_an_output_that_is_the_next_input_is_stored_once(store: Settings) -> None:
    value = files(60_000)
    with pytest.raises(ValueError, match="stop"):
        async with track_session("s") as session:
            async with session.agent("parser") as run:
                run.output = value
            async with session.agent("search", input_data=value) as run:
                run.output = value
            raise ValueError("stop")
    async with await resume_pipeline("s") as resume:
        assert resume.outputs == {"parser": value, "search": value}
        async with resume.agent("generation", input_data=resume.outputs["search"]) as run:
            run.output = {**value, "more": 1}
    (one, another) = chunks(store)
    assert {one["execution_id"]["S"], another["execution_id"]["S"]} == {"s-parser", "s-generation"}
    for agent in ("search", "generation"):
        assert (await get_agent_execution(f"s-{agent}")).input_data == value


async def test_an_input_of_all_outputs_so_far_stores_none_of_them_again(
    strict_store: Settings,
) -> None:
    data: dict[str, Any] = {"request": "a todo app"}
    inputs = {}
    for resumed in (False, True):
        async with track_session("s") as session:
            for number, name in enumerate(AGENTS):
                if name in session.outputs:
                    continue
                inputs[name] = {**data}
                async with session.agent(name, input_data=data) as run:
                    if name == "search" and not resumed:
                        run.fail("no answer")
                        break
                    run.output = data[name] = files(60_000 + 340 * number)
    sizes = {
        item["agent_name"]["S"].split("#")[1] + item["execution_id"]["S"]: len(item["chunk"]["B"])
        for item in chunks(strict_store)
    }
    assert sum(size for name, size in sizes.items() if name.startswith("input")) < 8 * 1500
    for name in AGENTS:
        assert (await get_agent_execution(f"s-{name}")).input_data == inputs[name]


@pytest.mark.parametrize("change", ["gone", "moved", "another", "hostile"])
async def test_an_input_whose_part_is_damaged_names_itself(
    strict_store: Settings, change: str
) -> None:
    value = files(60_000)
    async with track_session("s") as session:
        async with session.agent("parser") as run:
            run.output = value
        async with session.agent("search", input_data={"parser": value}) as run:
            run.output = 1
    for item in chunks(strict_store):
        key, packed = item["agent_name"]["S"], item["chunk"]["B"]
        if key.startswith("search"):
            header, _, rest = zlib.decompress(packed).partition(b"\n")
            ((start, part),) = json.loads(header)
            damaged: Any = [[start, part]]
            if change == "moved":
                damaged = [[start + 10**6, part]]
            elif change == "another":
                damaged = [[start, {**part, "codec": "zlib-parts"}]]
            elif change == "hostile":
                damaged = [[1e300, {"key": 1}]]
            packed = zlib.compress(json.dumps(damaged).encode() + b"\n" + rest)
            raw.put_attribute(strict_store, TABLE, "s-search", key, chunk={"B": packed})
        elif change == "gone":
            raw.delete(strict_store, TABLE, "s-parser", key)
    with pytest.raises(PayloadDamaged, match="s-search"):
        await get_agent_execution("s-search")
    assert (await get_agent_executions("s"))[1].agent_name == "search"


async def test_an_agent_that_runs_again_leaves_what_others_point_at(store: Settings) -> None:
    value = files(60_000)
    async with track_session("s") as session:
        async with session.agent("parser") as run:
            run.output = value
        async with session.agent("search", input_data=value) as run:
            run.fail("no answer")
    async with await resume_pipeline("s", from_agent="parser") as resume:
        async with resume.agent("parser") as run:
            run.output = {**value, "more": 1}
        assert (await get_agent_execution("s-search")).input_data == value


async def test_a_chunk_is_not_handed_back_by_its_write(strict_store: Settings) -> None:
    sizes: list[int] = []

    def measured(send: settings.Transport) -> settings.Transport:
        async def measure(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            response = await send(operation, request)
            sizes.append(len(str(response)))
            return response

        return measure

    with settings.use(strict_store, transport=measured):
        async with track_session("s") as session, session.agent("parser", files(60_000)) as run:
            run.output = 1
    assert max(sizes) < 3000


async def test_no_chunk_is_written_before_the_first_is_there(strict_store: Settings) -> None:
    """What has no first chunk is nobody's: `tdev rekey` deletes it beside workers."""
    keys: list[str] = []

    def transport(send: Transport) -> Transport:
        async def recorded(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            key = request.get("Key", {}).get("agent_name", {}).get("S", "")
            keys.append(f"{key} is sent")
            answer = await send(operation, request)
            keys.append(f"{key} is there")
            return answer

        return recorded

    with settings.use(strict_store, transport=transport):
        await update_agent_execution(
            execution_id="p-parser", status="COMPLETED", output_data=files(1_000_000)
        )
    of_chunks = [key.rpartition("#")[2] for key in keys if "#output_data#" in key]
    assert of_chunks[:2] == ["00000 is sent", "00000 is there"]
    assert len(of_chunks) > 4


async def test_a_payload_of_another_id_comes_back(store: Settings) -> None:
    value = [number / 7 for number in range(3000)]
    await save_pipeline_session(session_id="s", status="FAILED")
    await update_agent_execution(
        execution_id="custom", agent_name="generation", project_id="s", input_data=value
    )
    resume = await resume_pipeline("s")
    async with resume, resume.agent("generation", value) as run:
        run.output = 1
    assert (await get_agent_execution("s-generation")).input_data == value


def test_chunks_that_another_zlib_left_behind_are_not_taken_for_ones_own(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice, compress = random.Random(1), zlib.compress
    value = ["".join(dice.choices("abcdefghijklmnop", k=1000)) for _ in range(400)]
    run = {"execution_id": "s-parser", "status": "COMPLETED", "output_data": value}
    monkeypatch.setattr(zlib, "compress", lambda data: compress(data, 0))
    with injected(Fault("broken", operation="UpdateItem", nth=8)), pytest.raises(StoreError):
        sync.update_agent_execution(run)
    monkeypatch.setattr(zlib, "compress", compress)
    assert sync.update_agent_execution(run).output_data == value


def test_an_input_of_many_parts_under_long_ids_comes_back(strict_store: Settings) -> None:
    """The list of its parts would be longer than readers take."""
    session_id = "가" * 300
    with pytest.raises(KeyError), sync.track_session(session_id) as session:
        outputs = [
            session.run("evaluator", lambda: files(1500), key=f"{number}") for number in range(64)
        ]
        session.run("generation", lambda: outputs)
        raise KeyError
    generated = sync.get_agent_execution(f"{session_id}-generation", "generation")
    assert generated.output_data == outputs
