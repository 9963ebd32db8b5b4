"""The GPU command, where there is none: what it would run, and how it tells what went wrong."""

import json
import sys
from pathlib import Path

import pytest


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu_check

    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    monkeypatch.setattr(gpu_check, "gpu_names", list)
    assert gpu_check.main() == 2
    assert "needs a GPU, and torch sees none" in capsys.readouterr().err


def test_every_outcome_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_check
    from gpu_check import Step

    python = (sys.executable, "-c")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(tmp_path)])
    monkeypatch.setattr(gpu_check, "gpu_names", lambda: ["A GPU, 80GB"])
    wanted = [
        Step("good", (*python, ""), 30),
        Step("bad", (*python, "raise SystemExit(3)"), 30),
        Step("slow", (*python, "import time; time.sleep(9)"), 1),
        Step("absent", ("nothing",), 30, "there is no such program"),
    ]
    monkeypatch.setattr(gpu_check, "steps", lambda *arguments: wanted)
    assert gpu_check.main() == 1
    record = json.loads((tmp_path / "gpu_check_a_gpu_80gb.json").read_text())
    results = {step["name"]: step["result"] for step in record["steps"]}
    assert results == {
        "good": "passed",
        "bad": "failed",
        "slow": "too slow: over 1 s",
        "absent": "not run: there is no such program",
    }
    assert all(f"{name:36} {result}" in capsys.readouterr().out for name, result in list(results.items())[:1])
