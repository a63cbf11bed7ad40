"""`tdev local`: the embedded engine with the tables, in the foreground or for one command."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tdev_models import settings
from tdev_models.cli.arguments import DEFAULT_DATA
from tdev_models.cli.codes import DONE, FAILED
from tdev_models.cli.engine import Engine
from tdev_models.cli.local_state import LocalState
from tdev_models.errors import ConfigurationError, InvalidRequest

_STOP_SECONDS = 10


def run(options: argparse.Namespace) -> int:
    """Serve the tables of the current environment, run a command with them, or end that.

    Raises:
        ConfigurationError: no engine is available, it does not start, or it ended by itself.
        TdevError: the tables could not be made.
    """
    if not 0 < options.port < 65536:
        raise InvalidRequest("port", f"{options.port} is not from 1 to 65535")
    if options.program and options.action != "start":
        raise InvalidRequest("action", f"{options.action!r} takes no command")
    state = LocalState(options.data)
    if options.program:
        return _run_program(options, state)
    actions: dict[str, Callable[[argparse.Namespace, LocalState], int]] = {
        "start": _start,
        "status": _status,
        "stop": _stop,
    }
    return actions[options.action](options, state)


def _start(options: argparse.Namespace, state: LocalState) -> int:
    try:
        with Engine.start(options.data, options.port) as engine, state.held(engine):
            prepare(engine)
            if options.json:
                _say_as_json(engine.name, engine.endpoint, os.getpid(), engine.environ)
            else:
                sys.stdout.write(_said(options, engine))
                sys.stdout.flush()
            engine.wait()
    except KeyboardInterrupt:
        return DONE
    raise ConfigurationError(f"{engine.name} ended by itself")


def _said(options: argparse.Namespace, engine: Engine) -> str:
    chosen = settings.current()
    kept = f"data in {options.data}" if engine.keeps_data else engine.notice
    # Another terminal needs those that name the tables, too.
    names = {name: os.environ.get(name) for name in ("TDEV_ENV", "TDEV_TABLE_PREFIX")}
    exports = "\n".join(
        f"export {name}={shlex.quote(value)}"
        for name, value in {**names, **engine.environ}.items()
        if value
    )
    return (
        f"# {engine.name} with the tables {chosen.table_name('*')}; {kept}\n"
        f"# in another terminal:\n{exports}\n# Ctrl-C ends it\n"
    )


def _run_program(options: argparse.Namespace, state: LocalState) -> int:
    """Run one command, in the engine that runs on this data, or in one of its own."""
    if (running := state.running()) is not None:
        return _program_ended(options.program, running["environ"])
    with Engine.start(options.data, options.port) as engine, state.held(engine):
        prepare(engine)
        if engine.notice:
            sys.stderr.write(f"# {engine.notice}\n")
        return _program_ended(options.program, engine.environ)


def _program_ended(program: list[str], environ: dict[str, str]) -> int:
    """Return the exit code of a command, as a shell has it; Ctrl-C reaches the command itself."""
    try:
        process = subprocess.Popen(program, env={**os.environ, **environ})
    except OSError as error:
        raise InvalidRequest("command", f"{program[0]}: {error.strerror}") from None
    with process:
        while True:
            try:
                code = process.wait()
                return code if code >= 0 else 128 - code
            except KeyboardInterrupt:
                process.send_signal(signal.SIGTERM)


def _status(options: argparse.Namespace, state: LocalState) -> int:
    """Say whether an engine runs on this data; 1 where none does."""
    running = state.running()
    if running is None:
        if options.json:
            sys.stdout.write(json.dumps({"running": False}) + "\n")
        else:
            sys.stdout.write(f"No engine runs on {options.data}; '{_again(options)}' starts one.\n")
        return FAILED
    if options.json:
        _say_as_json(*(running[name] for name in ("engine", "endpoint", "pid", "environ")))
    else:
        sys.stdout.write(
            f"{running['engine']} runs on {running['endpoint']}, pid {running['pid']}, data in "
            f"{options.data}. '{_again(options, 'stop')}' ends it.\n"
        )
    return DONE


def _again(options: argparse.Namespace, *action: str) -> str:
    """Return a command about the same data."""
    data = [] if options.data == DEFAULT_DATA else ["--data", str(options.data)]
    return shlex.join(["tdev", "local", *action, *data])


def _stop(options: argparse.Namespace, state: LocalState) -> int:
    """End the engine that runs on this data."""
    running = state.running()
    if running is not None:
        os.kill(running["pid"], signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while state.running() is not None:
            if time.monotonic() > deadline:
                raise ConfigurationError(f"process {running['pid']} did not end")
            time.sleep(0.02)
    if options.json:
        sys.stdout.write(json.dumps({"stopped": running is not None}) + "\n")
    else:
        ended = f"{running['engine']} has ended." if running else f"None ran on {options.data}."
        sys.stdout.write(ended + "\n")
    return DONE


def _say_as_json(engine: str, endpoint: str, pid: int, environ: Any) -> None:
    record = {"running": True, "engine": engine, "endpoint": endpoint, "pid": pid}
    sys.stdout.write(json.dumps({**record, "environ": environ}) + "\n")
    sys.stdout.flush()


def prepare(engine: Engine) -> None:
    """Point this process, and its children, to the engine, and create or update its tables."""
    from tdev_models.migrations.apply import apply_all

    os.environ.update(engine.environ)
    apply_all(settings.current())
