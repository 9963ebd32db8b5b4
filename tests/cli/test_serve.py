"""What `vllm-pard serve` runs; tests/serving/test_server.py starts it."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from vllm_pard.cli import serve
from vllm_pard.demo import demo_path

Run = Callable[..., Any]


@pytest.fixture(params=[True, False], ids=["cpu", "gpu"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How the server's command begins."""
    monkeypatch.setattr(serve, "has_cpu_engine", lambda: request.param)
    on_cpu = ["vllm.entrypoints.openai.api_server", "--model"]
    return [sys.executable, "-m", *(on_cpu if request.param else ["vllm.entrypoints.cli.main", "serve"])]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commands: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, command: commands.append([path, *command]))
    return commands


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--speculative-config", '{"method": "pard"}', "-tp", "2", "--no-enable-prefix-caching"],
        ["--help"],
        ["-h", "--", "--port", "1"],
        ["-O.mode=3", "--port=8001", "--version", "demo", ""],
    ],
    ids=["none", "usual", "help", "dashes", "unusual"],
)
def test_hands_everything_over(arguments: list[str], server: list[str], executed: list[Any], run: Run) -> None:
    result = run("serve", "Qwen/Qwen3-8B", *arguments)
    assert result.exit_code == 0, result.output
    assert executed == [[sys.executable, *server, "Qwen/Qwen3-8B", *arguments]]


def test_the_bundled_target(server: list[str], executed: list[Any], run: Run) -> None:
    run("serve", "demo", "--port", 8001)
    assert executed == [[sys.executable, *server, str(demo_path("target")), "--port", "8001"]]


def test_help_and_no_target(executed: list[Any], run: Run) -> None:
    assert "Without --speculative-config it is plain vLLM" in run("serve", "--help").output.replace("\n", " ")
    assert run("serve").exit_code == 2
    assert executed == []
