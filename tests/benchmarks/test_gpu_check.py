"""The GPU command, where there is none: what it would run, and how it tells what went wrong."""

import json
import sys
from pathlib import Path

import pytest

SLOW = """
import signal, sys, time
from pathlib import Path
def stop(*_):
    Path("{file}").touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
time.sleep(60)
"""


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu_check

    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    monkeypatch.setattr(gpu_check, "gpu_names", list)
    assert gpu_check.main() == 2
    assert "needs a GPU, and torch sees none" in capsys.readouterr().err


def test_one_part_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_check

    steps = gpu_check.steps(tmp_path, "gpu", tmp_path)
    assert all(Path(word).exists() for step in steps for word in step.command if word.startswith(str(gpu_check.ROOT)))
    monkeypatch.setattr(gpu_check, "gpu_names", lambda: ["GPU"])
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(tmp_path), "--only", "no such part"])
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "no step has 'no such part' in its name" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(tmp_path), "--only", "launches"])
    monkeypatch.setattr(gpu_check, "run", lambda step, seconds_left: gpu_check.Outcome(step.name, "passed"))
    assert gpu_check.main() == 0
    record = json.loads((tmp_path / "gpu_check_gpu.json").read_text())
    assert [step["name"] for step in record["steps"]] == ["launches of a step"]


def test_time_runs_out() -> None:
    import gpu_check
    from gpu_check import Step

    slow = Step("slow", (sys.executable, "-c", "import time; time.sleep(60)"), 30)
    assert gpu_check.run(slow, 1.0).result == "too slow: over 1 s"
    assert gpu_check.run(slow, -1.0).result == "not run: no time is left"


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
        Step("slow", (*python, SLOW.format(file=tmp_path / "stopped")), 5),
        Step("absent", ("nothing",), 30, "there is no such program"),
    ]
    monkeypatch.setattr(gpu_check, "steps", lambda *arguments: wanted)
    assert gpu_check.main() == 1
    record = json.loads((tmp_path / "gpu_check_a_gpu_80gb.json").read_text())
    results = {step["name"]: step["result"] for step in record["steps"]}
    assert results == {
        "good": "passed",
        "bad": "failed",
        "slow": "too slow: over 5 s",
        "absent": "not run: there is no such program",
    }
    assert (tmp_path / "stopped").exists(), "what takes too long may still write down what it has"
    assert all(f"{name:36} {result}" in capsys.readouterr().out for name, result in list(results.items())[:1])
