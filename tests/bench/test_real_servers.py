"""`vllm-pard bench` on vLLM itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine import ENVIRONMENT

pytestmark = pytest.mark.engine


def test_plain_and_pard(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    command = [
        sys.executable,
        "-m",
        "vllm_pard.cli",
        "bench",
        "--methods",
        "none,pard",
        "--verify",
        "--json",
        str(path),
    ]
    command += ["--num-prompts", "4", "--runs", "1", "--warmup", "1", "--concurrency", "2", "--dtype", "float32"]
    done = subprocess.run(
        [*command, "--max-tokens", "64", "--engine-args", '{"max_model_len": 512}'],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(path.read_text())
    assert result["complete"]
    none, pard = result["results"]
    assert (none["mean_acceptance_length"], none["runs"][0]["stats"]["num_drafts"]) == (1, 0)
    assert pard["mean_acceptance_length"] > 4
    assert len(pard["acceptance_by_position"]) == 8
    assert pard["runs"][0]["num_tokens"] == none["runs"][0]["num_tokens"] > 100
    for cell in (none, pard):
        run = cell["runs"][0]
        assert 0 < run["ttft_p50_ms"] <= run["ttft_p99_ms"]
        assert 0 < run["tpot_p50_ms"] <= run["itl_p99_ms"]
        assert cell["roof_share"] > 0
    (verification,) = result["verification"]
    assert (verification["label"], verification["num_equal"], verification["num_requests"]) == ("pard", 4, 4)
    assert verification["judgement"] == "equal"
    assert (verification["control"]["concurrency"], verification["control"]["num_equal"]) == (1, 4)
    (verdict,) = result["verdicts"]
    assert verdict["speed_up"] == pytest.approx(pard["speed_up"])
    assert all(line.startswith("step ") for line in done.stderr.splitlines())  # nothing of vLLM's
