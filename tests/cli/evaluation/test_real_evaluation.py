"""`vllm-pard evaluate` with the real vLLM."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from vllm_pard.checkpoint import load_config, read_checkpoint
from vllm_pard.reference.engine import generate
from vllm_pard.reference.models import load_model
from vllm_pard.target_proj import target_proj_for

pytestmark = pytest.mark.engine
K, PROMPT = 3, "Hello"


@pytest.fixture(autouse=True)
def small_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Our own tests run Triton's interpreter; an engine for users does not.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def even_length(target: Path, draft: Path) -> int:
    """An answer that ends with the bonus token of a step: the engine counts nothing beyond its end."""
    target_model, draft_model = (load_model(str(path), "float32", "cpu") for path in (target, draft))
    checkpoint = read_checkpoint(str(draft), load_config(str(draft)))
    target_proj, _ = target_proj_for(checkpoint, str(target), load_config(str(target)))
    prompt = AutoTokenizer.from_pretrained(target)(PROMPT).input_ids
    options: dict[str, Any] = {"method": "pard2", "num_speculative_tokens": K, "mask_token_id": 300}
    options["target_proj"] = target_proj
    [first] = generate(target_model, draft_model, [prompt], max_new_tokens=1, **options)
    for length in range(30, 50):
        [rest] = generate(target_model, draft_model, [prompt + first.token_ids], max_new_tokens=length, **options)
        if rest.stats.num_drafts + rest.stats.num_accepted_tokens == length:
            return length + 1
    raise AssertionError("no such length")


def test_the_replay_is_what_the_engine_counts(
    run: Callable[..., Any], tiny_pair: tuple[Path, Path], pard2_draft: Path, tmp_path: Path
) -> None:
    """A PARD-2 draft, which vLLM runs dependent; independent mode is replayed on the same answer."""
    target, output = tiny_pair[0], tmp_path / "out.json"
    (tmp_path / "task.txt").write_text(PROMPT + "\n")
    options = ("--prompts", tmp_path / "task.txt", "--max-tokens", even_length(target, pard2_draft), "--k", K)
    result = run("evaluate", target, pard2_draft, *options, "--dtype", "float32", "--mode", "both", "--output", output)
    assert result.exit_code == 0, result.output
    assert "vLLM decodes dependent; independent mode is replayed on its answers" in result.stdout
    dependent, independent = json.loads(output.read_text())["rows"]
    decoded = dependent["decoded"]
    assert decoded == {key: dependent[key] for key in decoded}
    assert 0 < decoded["num_accepted_tokens"] < decoded["num_draft_tokens"]
    assert "decoded" not in independent
    assert dependent["num_accepted_tokens"] != independent["num_accepted_tokens"]
