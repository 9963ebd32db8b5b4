"""`vllm-pard generate --resume`: nothing is answered twice, and no answer stands beside one of another kind."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_pard.cli.batch.batch import Batch
from vllm_pard.demo import demo_path

Run = Callable[..., Any]
FAKE_ENGINE = Path(__file__).parent.parent / "fake_engine.py"
WITH_FAKE_ENGINE = (
    # A process started in the background ignores Ctrl-C, and so do its children.
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from vllm_pard.cli import main; from vllm_pard.cli.engine import client as engine_client; "
    f"engine_client.WORKER = (sys.executable, {str(FAKE_ENGINE)!r}); main()"
)


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\nthree\n")
    return path


@pytest.fixture
def output(run: Run, fake_engine: None, prompt_file: Path, tmp_path: Path) -> Path:
    """Two of three answers."""
    path = tmp_path / "out.jsonl"
    run("generate", "crash-in-the-middle", "--prompts", prompt_file, "--output", path)
    text = path.read_text().replace("crash-in-the-middle", "fine")
    assert text.count("\n") == 2
    path.write_text(text)
    return path


def test_says_what_is_left(run: Run, prompt_file: Path, output: Path) -> None:
    arguments = ("generate", "fine", "--prompts", prompt_file, "--output", output, "--resume")
    assert f"2 of 3 prompts are finished in {output}; 1 is left\n" in run(*arguments).stderr
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (0, f"3 of 3 prompts are finished in {output}; none is left\n")
    prompt_file.write_text("one\ntwo\nthree\nfour\nfive\n")
    assert f"3 of 5 prompts are finished in {output}; 2 are left\n" in run(*arguments).stderr


def test_a_new_file_has_nothing_to_say(run: Run, fake_engine: None, prompt_file: Path, tmp_path: Path) -> None:
    result = run("generate", "fine", "--prompts", prompt_file, "--output", tmp_path / "new.jsonl", "--resume")
    assert result.exit_code == 0
    assert "finished in" not in result.stderr


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--max-tokens", "9"], "max_tokens 256, and now it is 9"),
        (["--temperature", "0.5", "--seed", "3"], "temperature 0.0, and now it is 0.5"),
        (["--seed", "3"], "seed None, and now it is 3"),
        (["--dtype", "float32"], "dtype 'auto', and now it is 'float32'"),
        (["--engine-args", '{"quantization": "fp8"}'], "quantization None, and now it is 'fp8'"),
        (
            ["--speculative-config", '{"rejection_sample_method": "synthetic"}'],
            "rejection_sample_method None, and now it is 'synthetic'",
        ),
    ],
)
def test_other_settings_are_refused(
    options: list[str], difference: str, run: Run, prompt_file: Path, output: Path
) -> None:
    before = output.read_text()
    result = run("generate", "fine", "--prompts", prompt_file, "--output", output, "--resume", *options)
    assert result.exit_code == 2
    reason = f"its answers were made with {difference}; give another --output, or the same options"
    assert result.stderr == f"vllm-pard: can't go on with {str(output)!r}: {reason}\n"
    assert output.read_text() == before


def test_another_target_is_refused(run: Run, prompt_file: Path, output: Path) -> None:
    result = run("generate", "demo", "--prompts", prompt_file, "--output", output, "--resume")
    assert "its answers were made with target 'fine', and now it is 'demo/target'; give" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--draft", "d", "--num-speculative-tokens", "3"],
        ["--no-pard"],
        ["--engine-args", '{"gpu_memory_utilization": 0.5, "max_model_len": 64}'],
    ],
)
def test_what_changes_no_answer_may_change(options: list[str], run: Run, prompt_file: Path, output: Path) -> None:
    result = run("generate", "fine", "--prompts", prompt_file, "--output", output, "--resume", *options)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("options", [["--chat"], []])
def test_another_prompt_is_refused(options: list[str], run: Run, prompt_file: Path, output: Path) -> None:
    before = output.read_text()
    if not options:
        prompt_file.write_text("one\nzwei\nthree\n")
    result = run("generate", "fine", "--prompts", prompt_file, "--output", output, "--resume", *options)
    assert result.exit_code == 2
    reason = f"its answer 'line-{1 if options else 2}' is to another prompt than the one asked now"
    assert result.stderr == (
        f"vllm-pard: can't go on with {str(output)!r}: {reason}; give another --output, or the same prompts\n"
    )
    assert output.read_text() == before


def test_records_without_settings_stay(run: Run, prompt_file: Path, output: Path) -> None:
    records = [json.loads(line) for line in output.read_text().splitlines()]
    del records[0]["settings"]
    output.write_text("".join(json.dumps(record) + "\n" for record in records))
    result = run("generate", "fine", "--prompts", prompt_file, "--output", output, "--resume")
    assert result.exit_code == 0
    assert "1 of its records don't say with which settings they were made\n" in result.stderr
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == ["line-1", "line-2", "line-3"]


def test_settings_are_portable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo_path("target").parent)
    for target in ("./target", "target/", str(demo_path("target"))):
        options = {"model": target, "dtype": "auto"}
        batch = Batch(options=options, speculative=None, prompts=[], sampling={}, reference=False, verbose=False)
        assert batch.settings == {"target": "demo/target", "dtype": "auto"}


STARTED = "starting the engine\n"


@pytest.fixture
def interrupted(prompt_file: Path, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run a command, its stdout in a file, and press Ctrl-C once two answers are in `answers`: exit code and stderr."""

    def run(answers: Path, *options: str) -> tuple[int, str]:
        command = [sys.executable, "-c", WITH_FAKE_ENGINE, "generate", "hang-in-the-middle", "--no-pard", *options]
        with open(tmp_path / "stdout", "w") as stdout:
            process = subprocess.Popen(
                [*command, "--prompts", str(prompt_file)], stdout=stdout, stderr=subprocess.PIPE, text=True
            )
        deadline = time.monotonic() + 60
        while not (answers.exists() and answers.read_text().count("<0>") == 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        return process.returncode, stderr

    return run


def test_ctrl_c_says_what_is_kept(interrupted: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    kept = f"2 of 3 prompts are finished in {output}; --resume goes on"
    assert interrupted(output, "--output", str(output)) == (130, f"{STARTED}vllm-pard: interrupted: {kept}\n")
    assert output.read_text().count("\n") == 2


def test_ctrl_c_without_a_file(interrupted: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    kept = "answers so far are above; --output FILE would keep them"
    assert interrupted(tmp_path / "stdout") == (130, f"{STARTED}vllm-pard: interrupted: {kept}\n")
    assert (tmp_path / "stdout").read_text().count("<0>") == 2


def test_ctrl_c_before_the_first_answer(
    run: Run, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_pard.cli.batch import run as batch_run

    def interrupt(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_run, "vllm_events", interrupt)
    result = run("generate", "fine", "--prompts", prompt_file, "--output", tmp_path / "out.jsonl")
    assert (result.exit_code, result.stderr) == (130, "vllm-pard: interrupted: no prompt was finished\n")
    assert list(tmp_path.iterdir()) == [prompt_file]
