"""The commands with the real vLLM, in processes of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

pytestmark = pytest.mark.engine
PROMPTS = ("--prompt", "Hello", "--prompt", "x" * 600, "--prompt", "abc")


@pytest.fixture(autouse=True)
def small_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Our own tests run Triton's interpreter; an engine for users does not.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def records(path: Path) -> list[dict[str, Any]]:
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda record: record["id"])


def test_generate_gives_the_reference_engines_tokens(run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    target, draft = tiny_pair
    shared = ("generate", target, "--dtype", "float32", "--max-tokens", 12, *PROMPTS)
    result = run(*shared, "--draft", draft, "--num-speculative-tokens", 3, "--output", tmp_path / "pard")
    assert result.exit_code == 1, result.output
    assert "prompt-2 was refused" in result.stderr
    assert f"vLLM: PARD: draft {draft}, K=3" in result.stderr.replace("\n", "")
    assert "mean acceptance length" in result.stderr
    assert run(*shared, "--no-pard", "--engine", "reference", "--output", tmp_path / "reference").exit_code == 1
    # The texts may differ: vLLM keeps back bytes that are no whole character yet.
    for vllm_record, reference_record in zip(records(tmp_path / "pard"), records(tmp_path / "reference"), strict=True):
        assert vllm_record["num_tokens"] == reference_record["num_tokens"] == 12
        assert reference_record["text"].startswith(vllm_record["text"].rstrip("\ufffd"))


def test_wrong_draft_is_one_sentence(run: Run, tiny_pair: tuple[Path, Path]) -> None:
    target = tiny_pair[0]
    result = run("generate", target, "--draft", target, "--prompt", "x")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"vllm-pard: the draft '{target}' needs a mask token")


def test_demo(run: Run, tmp_path: Path) -> None:
    result = run("demo", "--prompts", 4, "--runs", 2, "--json", tmp_path / "demo.json")
    assert result.exit_code == 0, result.output
    assert "outputs identical" in result.stdout
    report = json.loads((tmp_path / "demo.json").read_text())
    assert report["outputs_identical"] is True
    # A wrong mask token or a wrong position leaves the output right and this near 1.
    assert report["mean_acceptance_length"] > 2
    assert len(report["acceptance_by_position"]) == 8
