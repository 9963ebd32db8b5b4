import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vllm_pard import process
from vllm_pard.bench import server
from vllm_pard.bench.load import Request


@pytest.fixture
def fake_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every server is a fake one; logs go to tmp_path."""
    monkeypatch.setattr(server, "SERVER", (sys.executable, str(Path(__file__).with_name("fake_server.py"))))
    monkeypatch.setattr(process.tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def requests() -> list[Request]:
    return [Request(id=str(number), token_ids=[1, 2, 10 * number]) for number in range(1, 5)]


@pytest.fixture
def run() -> Callable[..., Any]:
    """Run `vllm-pard` in this process."""
    from vllm_pard.cli.app import app

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
