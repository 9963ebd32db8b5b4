"""What `vllm-pard serve` runs; tests/serving/test_server.py starts it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
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
        ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 200, "other": 1}'],
        ["--speculative-config", '{"other": 1}'],
        ["--speculative-config", "None"],
        ["--spec-method", "pard", "--spec-tokens", "many"],
        ["--spec-method", "pard", "--speculative-config", '{"method": "pard", "other": 1}'],
        ["--speculative-config.method", "pard", "--speculative_config", '{"method": "pard", "other": 1}'],
        ["-sc.method=pard", "-sc", "{bad"],
        ["--", "--speculative-config", "{bad"],
        ["--port", "8001", "--speculative-config"],
    ],
    ids=lambda arguments: " ".join(arguments) or "none",
)
def test_hands_everything_over(arguments: list[str], server: list[str], executed: list[Any], run: Run) -> None:
    result = run("serve", "Qwen/Qwen3-8B", *arguments)
    assert result.exit_code == 0, result.output
    assert executed == [[sys.executable, *server, "Qwen/Qwen3-8B", *arguments]]


def test_the_bundled_target(server: list[str], executed: list[Any], run: Run) -> None:
    run("serve", "demo", "--port", 8001)
    assert executed == [[sys.executable, *server, str(demo_path("target")), "--port", "8001"]]


@pytest.mark.parametrize(
    "options",
    [
        ["--spec-model", "org/draft-of-the-hub"],
        ["--hf-overrides", '{"vocab_size": 128256}'],
        ["--hf_config_path=other"],
        ["--config", "options.yaml"],
    ],
    ids=" ".join,
)
def test_a_draft_that_is_named_elsewhere_or_fits_another_config(
    options: list[str], executed: list[Any], run: Run, tmp_path: Path
) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 320}
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ("serve", tmp_path, "--spec-method", "pard")
    assert run(*arguments).stderr.startswith("vllm-pard: no PARD draft is known for")
    assert executed == []
    assert run(*arguments, *options).exit_code == 0
    assert executed[0][-len(options) :] == options


def test_help_and_no_target(executed: list[Any], run: Run) -> None:
    assert "Without --speculative-config it is plain vLLM" in run("serve", "--help").output.replace("\n", " ")
    assert run("serve").exit_code == 2
    assert executed == []
