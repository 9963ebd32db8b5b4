"""The near end of an engine process: commands go in, events come out."""

import json
import sys
from collections.abc import Iterator
from typing import Any

from vllm_pard.errors import PardError
from vllm_pard.process import LoggedProcess, default_environment

WORKER = (sys.executable, "-m", "vllm_pard.cli.engine.process")


class EngineProcess(LoggedProcess):
    """Starts at once; `wait_until_ready` before anything else. A context manager, so that no process is left behind."""

    title = "engine process"

    def __init__(self, options: dict[str, Any], *, environment: dict[str, str] | None = None, verbose: bool = False):
        super().__init__(WORKER, environment=default_environment() | (environment or {}), verbose=verbose, answers=True)
        self._send({"op": "start", "options": options})

    def __enter__(self) -> "EngineProcess":
        return self

    def wait_until_ready(self) -> dict[str, Any]:
        """What the engine says of itself."""
        event = self._receive()
        return {key: value for key, value in event.items() if key != "event"}

    def generate(
        self,
        prompts: list[dict[str, Any]],
        sampling: dict[str, Any],
        *,
        stream: bool = False,
        find_costs: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Events "text" (if streaming), "finished" and "refused" as they come, and one "done" in the end.

        Also "progress" every second. With `find_costs`, drafts are held back in a few steps, and "costs" tells what
        steps take with and without.
        """
        asked = {"prompts": prompts, "sampling": sampling, "stream": stream, "find_costs": find_costs}
        self._send({"op": "generate"} | asked)
        while True:
            event = self._receive()
            yield event
            if event["event"] == "done":
                return

    def ask_to_stop(self) -> bool:
        self._send({"op": "stop"})
        return True

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
            raise self.ended()
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "failed":
            if event["ours"]:
                raise PardError(event["message"])
            raise self.failure(f"the engine failed: {event['kind']}: {event['message']}")
        return event
