import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vllm_pard import process
from vllm_pard.cli.app import app
from vllm_pard.cli.engine import client as engine_client


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run() -> Callable[..., Any]:
    """Run `vllm-pard` in this process."""

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every engine process is a fake one; logs go to tmp_path."""
    monkeypatch.setattr(engine_client, "WORKER", (sys.executable, str(Path(__file__).with_name("fake_engine.py"))))
    monkeypatch.setattr(process.tempfile, "tempdir", str(tmp_path))
