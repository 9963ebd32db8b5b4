"""A vLLM server for the time of a benchmark."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from vllm_pard.errors import PardError
from vllm_pard.process import CPU_OPTIONS, LoggedProcess, ProcessError, has_cpu_engine

SERVER = (sys.executable, "-m", "vllm_pard.bench.serve_process")
SECONDS_TO_START = 900
SECONDS_TO_END = 2
HOST = "127.0.0.1"
SERVED_NAME = "target"
OUT_OF_MEMORY = (
    r"(?i)out of memory|OutOfMemoryError|No available memory for the cache blocks|free memory on device"
    r"|died unexpectedly \(exit code: -9\)"  # a worker that Linux killed
)


class PortError(PardError):
    """The port is taken."""


class Server(LoggedProcess):
    """`vllm serve` on a port of this machine; a context manager."""

    title = "server"

    def __init__(self, target: str, options: dict[str, Any], *, port: int | None = None, verbose: bool = False) -> None:
        self.port = free_port() if port is None else check_port(port)
        super().__init__(
            command(target, self.port, options), environment=server_environment(), verbose=verbose, answers=False
        )

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> "Server":
        return self

    def wait_until_ready(self) -> None:
        """Return as soon as it answers; raise ProcessError if it ends before, or takes too long."""
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            if self.exit_code is not None:
                raise self.ended()
            if self.answers():
                return
            time.sleep(0.5)
        raise self.failure(f"the server did not answer within {SECONDS_TO_START} s")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def ended(self) -> ProcessError:
        if self.log_lines(OUT_OF_MEMORY):
            return self.failure("the server ran out of memory")
        return super().ended()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """One request to /v1/completions, answered whole."""
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            data=json.dumps({"model": SERVED_NAME} | body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise self.failure(f"the server refused a request: {error.read().decode(errors='replace')}") from error
        except OSError as error:
            raise self.lost(error) from error

    def lost(self, reason: object) -> ProcessError:
        """Why a request got no answer: the server has ended, or `reason`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_END)  # its connections go first
            return self.ended()
        return self.failure(f"the server did not answer: {reason}")


def command(target: str, port: int, options: dict[str, Any]) -> tuple[str, ...]:
    platform_options = CPU_OPTIONS if has_cpu_engine() else {}
    fixed = {"model": target, "served_model_name": SERVED_NAME, "host": HOST, "port": port}
    words = flags(platform_options | options | fixed)
    return (*SERVER, *words)


def flags(options: dict[str, Any]) -> list[str]:
    """Engine arguments as they are written on vLLM's command line; None is left out."""
    words: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return words


def server_environment() -> dict[str, str]:
    """What is set for the server unless the user has set it."""
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    if has_cpu_engine():
        num_threads = num_cpu_threads()
        cores = sorted(os.sched_getaffinity(0))[:num_threads]
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": str(num_threads),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),  # vLLM would take all cores but one
        }
    return environment


def num_cpu_threads() -> int:
    """Of an engine on the CPU. OpenMP waits for its slowest thread: half the cores are left to the HTTP server, the
    scheduler and the load.
    """
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // 2))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> int:
    """The port itself, if nobody listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortError(
                f"port {port} can't be used ({error.strerror}); give another --port, or leave it out for a free one"
            ) from error
    return port
