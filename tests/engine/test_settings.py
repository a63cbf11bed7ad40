"""Which settings a call follows."""

from __future__ import annotations

import threading

from tdev_models import (
    Resume,
    Settings,
    configure,
    get_pipeline_session,
    save_pipeline_session,
    settings,
    sync,
    track_session,
)
from tests import raw
from tests.conftest import make_tables


async def test_a_lease_is_of_one_environment(store: Settings) -> None:
    other = make_tables(str(store.endpoint))
    async with track_session("s"):
        with settings.use(other):
            await save_pipeline_session(session_id="s", project_name="another session")
    with settings.use(other):
        assert (await get_pipeline_session("s")).status == "ACTIVE"


async def test_a_call_goes_where_it_was_made(store: Settings) -> None:
    other = make_tables(str(store.endpoint))
    with settings.use(other):
        call = save_pipeline_session(session_id="s", project_name="there")
    await call
    with settings.use(other):
        assert (await get_pipeline_session("s")).project_name == "there"
    assert raw.everything(store, "pipeline-sessions") == []


def test_runners_in_threads_see_the_settings_of_their_worker(store: Settings) -> None:
    other = make_tables(str(store.endpoint))
    with settings.use(other):
        for name in ("a", "b", "c"):
            sync.save_pipeline_session(session_id=name, status="FAILED")

        def runner(session: Resume) -> None:
            assert threading.current_thread() is not threading.main_thread()
            sync.save_pipeline_session(session_id=session.session_id, project_name="seen")

        assert len(sync.recover_sessions(runner, concurrency=3).completed) == 3
        assert sync.get_pipeline_session("b").project_name == "seen"


def test_a_second_configure_keeps_the_first(store: Settings) -> None:
    assert configure(lease_seconds=7).endpoint == store.endpoint
    assert configure(stalled_after_seconds=70).lease_seconds == 7
