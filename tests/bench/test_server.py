"""A server is started, waited for, asked and stopped; whatever goes wrong is told with the end of its log."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_pard.bench.server import PortError, Server, flags
from vllm_pard.process import ProcessError

pytestmark = pytest.mark.usefixtures("fake_server")


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("vllm-pard-*.log"))


def test_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with Server("fine", {}) as server:
        server.wait_until_ready()
        answer = server.complete({"prompt": [1, 7], "max_tokens": 2})
        assert answer["choices"][0]["token_ids"] == [8, 9]
        assert len(logs(tmp_path)) == 1
    assert server.exit_code is not None
    assert logs(tmp_path) == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("crash-at-start", "the server ended with exit code 3; the end of its log, .*\n.*\n    the last words"),
        ("out-of-memory", "the server ran out of memory; the end of its log, .*\n"),
        (
            "killed-worker",
            r"the server ran out of memory; (?s:.*)\n    ERROR Worker proc .*\n    \.\.\.\n    INFO shutting down, 25",
        ),
    ],
)
def test_a_server_that_does_not_start(model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match=message), Server(model, {}) as server:
        server.wait_until_ready()
    assert len(logs(tmp_path)) == 1  # the error quotes it


def test_a_refused_request(tmp_path: Path) -> None:
    with Server("refuses", {}) as server:
        server.wait_until_ready()
        with pytest.raises(ProcessError, match="refused a request: no room for this prompt"):
            server.complete({"prompt": [1], "max_tokens": 1})


def test_a_server_that_dies(tmp_path: Path) -> None:
    with Server("crash-in-the-middle", {}) as server:
        server.wait_until_ready()
        server.complete({"prompt": [1], "max_tokens": 1})
        server.complete({"prompt": [1], "max_tokens": 1})
        with pytest.raises(ProcessError, match=r"exit code 3; (?s:.*)the last words"):
            server.complete({"prompt": [1], "max_tokens": 1})


def test_a_port_in_use_is_told_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortError, match=f"port {port} can't be used .*give another --port"):
            Server("fine", {}, port=port)


def test_a_given_port_is_used() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Server("fine", {}, port=port) as server:
        server.wait_until_ready()
        assert server.url == f"http://127.0.0.1:{port}"


def test_options_as_flags() -> None:
    options = {"max_num_seqs": 4, "enforce_eager": True, "enable_prefix_caching": False, "revision": None}
    options |= {"speculative_config": {"method": "pard"}, "dtype": "float32"}
    assert flags(options) == [
        *("--max-num-seqs", "4", "--enforce-eager", "--no-enable-prefix-caching"),
        *("--speculative-config", '{"method": "pard"}', "--dtype", "float32"),
    ]


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Killed, we can't stop it; it notices by itself."""
    script = (
        "import sys, threading, time\n"
        "from vllm_pard.bench import serve_process\n"
        "threading.Thread(target=serve_process.end_with_parent, daemon=True).start()\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            f"child = subprocess.Popen([sys.executable, '-c', {script!r}], stdin=subprocess.PIPE,"
            " stdout=subprocess.PIPE, start_new_session=True)\n"
            "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"
