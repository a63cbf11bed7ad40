"""`tdev ui` and `tdev report`, as users run them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from tdev_models import Settings, settings, sync
from tdev_models.cli import main
from tdev_models.views.moments import moment
from tdev_models.views.numbers import percent, short
from tdev_models.web import report


def test_the_page_is_served_on_loopback_until_ctrl_c(strict_store: Settings) -> None:
    sync.save_pipeline_session(session_id="the one")
    environment = {
        **os.environ,
        "TDEV_ENV": strict_store.environment,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_DYNAMODB": strict_store.endpoint or "",
    }
    command = [sys.executable, "-c", "from tdev_models.cli import main; raise SystemExit(main())"]
    process = subprocess.Popen(
        [*command, "ui", "--port", "0", "--act"],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert strict_store.environment in lines[0]
        (address,) = re.findall(r"^(http://127\.0\.0\.1:\d+/) ", lines[1])
        assert re.fullmatch(r"Token to act: [\w-]{24}\n", lines[2])
        with urlopen(address, timeout=10) as page:
            assert "the one" in page.read().decode()
        # Who watches is let go at once, and nothing is said of it.
        with urlopen(f"{address}session/live?session_id=the%20one", timeout=10) as watching:
            assert watching.readline() == b"event: message\n"
            reading = threading.Thread(target=watching.read)
            reading.start()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=10)
            reading.join(10)
    finally:
        process.kill()
    assert (process.returncode, errors) == (130, "")


def test_a_port_that_cannot_be_had_is_an_error_with_its_remedy(
    strict_store: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 1
    expected = f"error: port {port}: Address already in use; choose another with --port\n"
    assert capsys.readouterr().err == expected
    assert main(["ui", "--port", "65536"]) == 64
    assert capsys.readouterr().err == "error: port: 65536 is not from 0 to 65535\n"


def test_the_report_has_the_numbers_of_the_calls(
    month: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    out.write_text("what was there before")
    command = ["report", "--days", "30", "--out", str(out), "--ab", "search", "old", "new"]
    for uneven in (["old=9,new=1", "more"], ["9,1"], ["old=9,old=1"]):
        assert main([*command, *uneven]) == 64
        assert re.match(r"error: (weights|ab): .*old=9,new=1", capsys.readouterr().err)
    command.append("old=1,new=1")
    assert main(command) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert re.search(r"report\.html: \d+ kB", said)
    text = out.read_text()
    end = moment("end", "0s")
    report = sync.usage_report(end - 30 * 86400, end)
    assert f"<dd>{report.sessions.completed:,}</dd>" in text
    failed = sync.list_pipeline_sessions(status="FAILED", limit=100)
    assert all(one.session_id in text for one in failed)
    for agent in sync.agent_performance(end - 30 * 86400, end).agents:
        assert f"<bdi>{agent.agent_name}</bdi> over time" in text
    assert every_row(text) == [
        (row.day, f"{row.count:,}", *map(short, row.percentiles.values()), percent(row.error_rate))
        for agent in sync.agent_performance(end - 30 * 86400, end).agents
        for row in sync.query_metrics(
            "agent_execution_time",
            end - 30 * 86400,
            end,
            agent_name=agent.agent_name,
            group_by="day",
            percentiles=(50, 95, 99),
        )
    ]
    (requests,) = re.findall(r"(\d+) requests", said)
    assert int(requests) < 31 * 18 + 50  # a day's Queries are as many for any number of agents
    assert not re.search(r"<script|https?://(?!127\.0\.0\.1)|src=|style=", text)
    for nowhere in (tmp_path, tmp_path / "missing" / "report.html"):
        assert main(["report", "--out", str(nowhere), "--days", "1"]) == 64
        assert "is no file in a folder that exists" in capsys.readouterr().err
    assert main(["report", "--out", str(out), "--days", "0"]) == 64


def test_the_report_has_the_failures_of_its_range(
    strict_store: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_FAILURES", 3)
    with settings.use(clock=lambda: time.time() - 5 * 86400):
        sync.update_agent_execution(execution_id="old-parser", status="FAILED", error_message="old")
    for number in range(4):
        sync.update_agent_execution(
            execution_id=f"{number}-parser", status="FAILED", error_message="new"
        )

    def failures(*options: str) -> str:
        out = tmp_path / "report.html"
        assert main(["report", "--days", "7", "--out", str(out), *options]) == 0
        return out.read_text().partition('<section id="failures">')[2].partition("</section>")[0]

    assert "<bdi>old</bdi>" in failures("--end", "3d")
    newest = failures()
    assert '<td class="number strong">3</td>' in newest
    assert "Only the newest are shown: 3." in newest


def every_row(text: str) -> list[tuple[str, ...]]:
    """Return the rows of every agent over time."""
    tables = re.findall(r"<th[^>]*>p99 s</th><th[^>]*>failed %</th></tr></thead>\n(.*)", text)
    rows = [row for table in tables for row in re.findall(r"<tr>(.*?)</tr>", table)]
    return [tuple(re.findall(r"<t[hd][^>]*>([^<]*)", row)) for row in rows]


def test_without_the_extra_the_remedy_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("tdev_models.web", "tdev_models.cli.ui"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["ui"]) == 1
    assert "pip install 'tdev-models[web]'" in capsys.readouterr().err
