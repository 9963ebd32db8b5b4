import os
import time
from pathlib import Path
from typing import Any

import pytest

from vllm_pard import process
from vllm_pard.cli.engine.client import EngineProcess
from vllm_pard.errors import PardError
from vllm_pard.process import PARD_LOG_LINE, ProcessError

pytestmark = pytest.mark.usefixtures("fake_engine")

PROMPTS = [{"id": name, "text": name, "messages": None} for name in ("a", "b", "c")]
SAMPLING = {"max_tokens": 2}
SPECULATIVE = {"model": "amd/draft"}


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("vllm-pard-*.log"))


def is_running(engine: EngineProcess) -> bool:
    return engine._process.poll() is None


def test_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with EngineProcess({"model": "fine", "speculative_config": SPECULATIVE}) as engine:
        assert engine.wait_until_ready()["vllm"] == "0.0"
        events = list(engine.generate(PROMPTS, SAMPLING))
        assert [event["event"] for event in events] == ["finished", "finished", "finished", "done"]
        assert events[0]["token_ids"] == [0, 1]
        assert engine.log_lines(PARD_LOG_LINE) == ["PARD: draft amd/draft, K=2 draft tokens in one forward"]
        assert len(logs(tmp_path)) == 1
    assert not is_running(engine)
    assert logs(tmp_path) == []


def test_streams(tmp_path: Path) -> None:
    with EngineProcess({"model": "fine"}) as engine:
        engine.wait_until_ready()
        kinds = [event["event"] for event in engine.generate(PROMPTS[:1], SAMPLING, stream=True)]
        assert kinds == ["text", "text", "finished", "done"]


def test_costs_are_found_only_when_asked(tmp_path: Path) -> None:
    """Drafts that are held back would spoil what the demo and the doctor measure."""
    with EngineProcess({"model": "loses", "speculative_config": SPECULATIVE}) as engine:
        engine.wait_until_ready()
        kinds = [
            {event["event"] for event in engine.generate(PROMPTS, SAMPLING, **asked)}
            for asked in ({}, {"find_costs": True})
        ]
    assert ["costs" in found for found in kinds] == [False, True]


def test_our_own_errors_stay_sentences(tmp_path: Path) -> None:
    with pytest.raises(PardError) as caught, EngineProcess({"model": "wrong-config"}) as engine:
        engine.wait_until_ready()
    assert str(caught.value) == "the draft has another tokenizer"
    assert logs(tmp_path) == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("unexpected", "the engine failed: RuntimeError: out of memory; the end of its log, .*"),
        ("crash-at-start", "the engine process ended with exit code 3; the end of its log, .*\n.*\n    the last words"),
    ],
)
def test_failures_show_the_end_of_the_log_and_keep_it(model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match=message) as caught, EngineProcess({"model": model}) as engine:
        engine.wait_until_ready()
    (log,) = logs(tmp_path)
    assert str(log) in str(caught.value)


def test_crash_in_the_middle_keeps_what_came_before(tmp_path: Path) -> None:
    with EngineProcess({"model": "crash-in-the-middle"}) as engine:
        engine.wait_until_ready()
        events = engine.generate(PROMPTS, SAMPLING)
        assert [next(events)["id"], next(events)["id"]] == ["a", "b"]
        with pytest.raises(ProcessError, match="exit code 3"):
            next(events)


def test_interrupt_stops_a_busy_engine_at_once(tmp_path: Path) -> None:
    started = time.monotonic()

    def interrupted_run() -> None:
        with EngineProcess({"model": "hang-in-the-middle"}) as engine:
            engines.append(engine)
            engine.wait_until_ready()
            for number, _ in enumerate(engine.generate(PROMPTS, SAMPLING)):
                if number == 1:
                    raise KeyboardInterrupt

    engines: list[EngineProcess] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert not is_running(engines[0])
    assert time.monotonic() - started < 5
    assert logs(tmp_path) == []


def test_the_users_environment_wins(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    seen: dict[str, str] = {}
    popen = process.subprocess.Popen

    def recording_popen(*args: Any, env: dict[str, str], **kwargs: Any) -> Any:
        seen.update(env)
        return popen(*args, env=env, **kwargs)

    monkeypatch.setattr(process.subprocess, "Popen", recording_popen)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    with EngineProcess({"model": "fine"}, environment=environment, verbose=True) as engine:
        engine.wait_until_ready()
    assert seen["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert seen["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert seen["PATH"] == os.environ["PATH"]
    assert "a line of the log" in capfd.readouterr().err
