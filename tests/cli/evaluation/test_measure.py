"""`vllm-pard evaluate` with a fake engine, and with the reference engine on tiny models."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from vllm_pard.bench.prompt_sets import PromptSet
from vllm_pard.cli.engine.client import EngineProcess
from vllm_pard.cli.evaluation import decoding
from vllm_pard.cli.evaluation.decoding import tokenized
from vllm_pard.cli.evaluation.question import Models, Question, find_models
from vllm_pard.files import write_whole
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.prompts import Prompt
from vllm_pard.reference.engine import ReferenceEngine
from vllm_pard.reference.models import load_model
from vllm_pard.target_proj import read_target_proj

Run = Callable[..., Any]
TargetNamed = Callable[[str], Path]

MAX_TOKENS = 20


def rows_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return found


def test_with_an_engine_process(
    run: Run, fake_engine: None, target_named: TargetNamed, pard2_draft: Path, task: Path, tmp_path: Path
) -> None:
    target, output = target_named("fine"), tmp_path / "out.json"
    arguments = ("--prompts", task, "--prompts", "demo:code", "--num-prompts", 2, "--k", "4,2", "--mode", "independent")
    result = run("evaluate", target, pard2_draft, *arguments, "--output", output)
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[:8] == ["task", "K", "length", "decoded", "1", "2", "3", "4"]
    record = json.loads(output.read_text())
    assert [(row["task"], row["num_speculative_tokens"]) for row in record["rows"]] == [
        ("task.txt", 2),
        ("task.txt", 4),
        ("demo:code", 2),
        ("demo:code", 4),
    ]
    for row in record["rows"]:
        # Answers of three tokens: the first is the target's, so one or two steps are left.
        assert (row["num_prompts"], row["num_refused"], row["num_tokens"], row["mode"]) == (2, 0, 6, "independent")
        assert 2 <= row["num_drafts"] <= 4
        assert row["num_draft_tokens"] == row["num_drafts"] * row["num_speculative_tokens"]
        assert ("decoded" in row) == (row["num_speculative_tokens"] == 4)
    assert record["rows"][1]["decoded"]["num_accepted_tokens"] == 6
    assert record["rows"][1]["decoded_acceptance_length"] == 2.5
    assert record["refused"] == {}
    conditions = record["conditions"]
    assert (conditions["engine"], conditions["decoded_mode"], conditions["temperature"]) == ("vllm", "independent", 0)
    assert conditions["tasks"][0] == {"name": "task.txt", "source": "task.txt", "available": 3, "num_prompts": 2}
    assert str(tmp_path) not in json.dumps(conditions), "a result is read elsewhere"


def test_refused_prompts_are_shown(
    run: Run, fake_engine: None, target_named: TargetNamed, tiny_pair: tuple[Path, Path], task: Path, tmp_path: Path
) -> None:
    task.write_text(f"one\n{'x' * 401}\ntwo\n")
    output = tmp_path / "out.json"
    result = run("evaluate", target_named("fine"), tiny_pair[1], "--prompts", task, "--output", output)
    assert result.exit_code == 1
    assert "1 of 3 prompts of task.txt refused; line-2: the prompt is too long\n" in result.stdout
    record = json.loads(output.read_text())
    assert record["refused"] == {"task.txt": {"line-2": "the prompt is too long"}}
    assert [(row["num_prompts"], row["num_refused"]) for row in record["rows"]] == [(2, 1)]


def test_all_prompts_refused(
    run: Run, fake_engine: None, target_named: TargetNamed, tiny_pair: tuple[Path, Path], task: Path, tmp_path: Path
) -> None:
    task.write_text(f"{'x' * 401}\n")
    output = tmp_path / "out.json"
    result = run("evaluate", target_named("fine"), tiny_pair[1], "--prompts", task, "--output", output)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last == "vllm-pard: all prompts of task.txt are refused; 'line-1': the prompt is too long"
    assert not output.exists()


def test_an_engine_that_crashes_leaves_an_earlier_result(
    run: Run, fake_engine: None, target_named: TargetNamed, tiny_pair: tuple[Path, Path], task: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.json"
    write_whole(output, "earlier\n")
    arguments = ("evaluate", target_named("crash-in-the-middle"), tiny_pair[1], "--prompts", task)
    result = run(*arguments, "--output", output)
    assert result.exit_code == 2
    assert "the engine process ended with exit code 3" in result.stderr
    assert output.read_text() == "earlier\n"


def test_ctrl_c_stops_the_engine(
    run: Run,
    fake_engine: None,
    target_named: TargetNamed,
    tiny_pair: tuple[Path, Path],
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generate, engines = EngineProcess.generate, []

    def interrupted(engine: EngineProcess, *arguments: Any) -> Iterator[dict[str, Any]]:
        engines.append(engine)
        yield next(generate(engine, *arguments))
        assert engine.exit_code is None
        raise KeyboardInterrupt

    monkeypatch.setattr(EngineProcess, "generate", interrupted)
    target, output = target_named("hang-in-the-middle"), tmp_path / "out.json"
    result = run("evaluate", target, tiny_pair[1], "--prompts", task, "--output", output)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == "vllm-pard: interrupted"
    assert engines[0].exit_code is not None
    assert not output.exists()


def test_models_are_loaded_once_when_the_engine_is_closed(
    run: Run,
    fake_engine: None,
    target_named: TargetNamed,
    pard2_draft: Path,
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the dtype that it ran in."""
    wait_until_ready, engines = EngineProcess.wait_until_ready, []
    loaded: list[tuple[str, str, bool]] = []

    def ready(engine: EngineProcess) -> dict[str, Any]:
        engines.append(engine)
        return wait_until_ready(engine) | {"dtype": "bfloat16"}

    def recording_load(name: str, dtype: str, device: str) -> Any:
        loaded.append((Path(name).name, dtype, engines[0].exit_code is not None))
        return load_model(name, dtype, device)

    monkeypatch.setattr(EngineProcess, "wait_until_ready", ready)
    monkeypatch.setattr(decoding, "load_model", recording_load)
    target, output = target_named("fine"), tmp_path / "out.json"
    result = run("evaluate", target, pard2_draft, "--prompts", task, "--mode", "both", "--output", output)
    assert result.exit_code == 0, result.output
    assert loaded == [("draft", "bfloat16", True), ("fine", "bfloat16", True)]
    assert [row["mode"] for row in rows_of(output)] == ["dependent", "independent"]
    assert json.loads(output.read_text())["conditions"]["weight_dtype"] == "bfloat16"


@pytest.mark.parametrize("decoded", ["dependent", "independent"])
@pytest.mark.parametrize("mode", ["auto", "both", "independent"])
def test_an_engine_decodes_in_the_mode_that_it_can(
    mode: str,
    decoded: str,
    run: Run,
    fake_engine: None,
    target_named: TargetNamed,
    pard2_draft: Path,
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it can give features is for the engine to say; all other modes are replayed."""
    wait_until_ready, told = EngineProcess.wait_until_ready, []

    def ready(engine: EngineProcess) -> dict[str, Any]:
        about = wait_until_ready(engine)
        told.append(about["options"]["speculative_config"].get("mode"))
        return about | {"mode": told[-1] or decoded}

    monkeypatch.setattr(EngineProcess, "wait_until_ready", ready)
    output = tmp_path / "out.json"
    arguments = ("--prompts", task, "--mode", mode, "--output", output)
    result = run("evaluate", target_named("target"), pard2_draft, *arguments)
    assert result.exit_code == 0, result.output
    assert told == ["independent" if mode == "independent" else None]
    mode_of_engine = told[0] or decoded
    assert json.loads(output.read_text())["conditions"]["decoded_mode"] == mode_of_engine
    modes = {"auto": ["dependent"], "both": ["dependent", "independent"]}.get(mode, ["independent"])
    assert {row["mode"]: "decoded" in row for row in rows_of(output)} == {m: m == mode_of_engine for m in modes}
    for other in ("dependent", "independent"):
        note = f"vLLM decodes {mode_of_engine}; {other} mode is replayed on its answers"
        assert (note in result.stdout) == (other in modes and other != mode_of_engine)


def literal_stats(models: Models, prompts: list[list[int]], k: int, mode: str, *, skip_first: bool) -> AcceptanceStats:
    """What a reference engine of its own counts, from the prompts on or from the first tokens of the answers."""
    target, draft = (load_model(name, "float32", "cpu") for name in (models.question.target, models.checkpoint.path))
    target_proj = None
    if mode == "dependent":
        assert models.checkpoint.features is not None
        target_proj = read_target_proj(models.checkpoint.path, models.checkpoint.features, draft.config.hidden_size)
    engine = ReferenceEngine(
        target,
        draft,
        method="pard" if target_proj is None else "pard2",
        num_speculative_tokens=k,
        mask_token_id=models.checkpoint.mask_token_id,
        target_proj=target_proj,
        batch_size=len(prompts),
        max_length=200,
    )
    num_new = MAX_TOKENS
    if skip_first:
        first = engine.generate(prompts, max_new_tokens=1)
        prompts = [prompt + found.token_ids for prompt, found in zip(prompts, first, strict=True)]
        num_new -= 1
    return sum((found.stats for found in engine.generate(prompts, max_new_tokens=num_new)), AcceptanceStats())


def question_about(target: Path, draft: Path) -> Question:
    options: dict[str, Any] = {"num_prompts": None, "lengths": (4,), "mode": "auto", "reference": True, "options": {}}
    options |= {"dtype": "float32", "max_tokens": MAX_TOKENS, "seed": 0, "verbose": False}
    return Question(target=str(target), draft=str(draft), tasks=(), **options)


@pytest.mark.parametrize("mode", ["both", "dependent", "independent"])
def test_with_the_reference_engine(
    mode: str, run: Run, tiny_pair: tuple[Path, Path], pard2_draft: Path, task: Path, tmp_path: Path
) -> None:
    target, output = tiny_pair[0], tmp_path / "out.json"
    arguments = ("--engine", "reference", "--dtype", "float32", "--prompts", task, "--max-tokens", MAX_TOKENS)
    result = run("evaluate", target, pard2_draft, *arguments, "--k", "1,4", "--mode", mode, "--output", output)
    assert result.exit_code == 0, result.output
    models = find_models(question_about(target, pard2_draft))
    tokenizer = AutoTokenizer.from_pretrained(target)
    prompts = [tokenizer(text).input_ids for text in ("one", "two", "three")]
    modes = ("dependent", "independent") if mode == "both" else (mode,)
    rows = rows_of(output)
    assert [(row["mode"], row["num_speculative_tokens"]) for row in rows] == [(m, k) for m in modes for k in (1, 4)]
    for row in rows:
        literal = literal_stats(models, prompts, row["num_speculative_tokens"], row["mode"], skip_first=True)
        # As many steps; beyond the end of an answer, only the engine counts.
        assert row["num_drafts"] == literal.num_drafts
        assert 0 <= literal.num_accepted_tokens - row["num_accepted_tokens"] < len(prompts) * 4
        if "decoded" in row:
            counted = literal_stats(models, prompts, row["num_speculative_tokens"], row["mode"], skip_first=False)
            assert row["decoded"] == asdict(counted) | {"accepted_per_position": [*counted.accepted_per_position]}
    assert ["decoded" in row for row in rows] == [False, True, *[False] * (len(rows) - 2)]
    assert len({row["num_drafts"] for row in rows}) == len(rows), "all of them differ"


def test_prompts_without_room(run: Run, tiny_pair: tuple[Path, Path], task: Path, tmp_path: Path) -> None:
    task.write_text(f"one\n{'x' * 500}\n")
    arguments = ("--engine", "reference", "--prompts", task, "--max-tokens", MAX_TOKENS)
    result = run("evaluate", *tiny_pair, *arguments)
    assert result.exit_code == 1
    reason = "the target has room for 512 tokens; 500 prompt tokens and 20 new ones are more"
    assert f"1 of 2 prompts of task.txt refused; line-2: {reason}\n" in result.stdout
    task.write_text(f"{'x' * 493}\n")
    assert run("evaluate", *tiny_pair, *arguments).exit_code == 2
    task.write_text(f"{'x' * 492}\n")
    assert run("evaluate", *tiny_pair, *arguments).exit_code == 0


def test_answers_of_one_token(run: Run, tiny_pair: tuple[Path, Path], task: Path) -> None:
    result = run("evaluate", *tiny_pair, "--engine", "reference", "--prompts", task, "--max-tokens", 1, "--k", 2)
    assert result.exit_code == 0, result.output
    assert "-: no drafts, since every answer is a single token" in result.stdout


@pytest.fixture
def models(tiny_pair: tuple[Path, Path], tmp_path: Path) -> Models:
    """Of a target whose chat template can think."""
    target = tmp_path / "target"
    shutil.copytree(tiny_pair[0], target)
    (target / "chat_template.jinja").write_text(
        "{{ messages[0]['content'] }}{% if enable_thinking is false %}!{% endif %}"
    )
    return find_models(question_about(target, tiny_pair[1]))


def chats(*texts: str) -> PromptSet:
    prompts = [Prompt(id=text, messages=[{"role": "user", "content": text}]) for text in texts]
    return PromptSet("chats", "test", None, len(prompts), [*prompts, Prompt(id="text", text="plain")])


def test_chats_are_without_thinking(models: Models) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models.question.target)
    (asked,) = tokenized(models, [chats("one", "two")])
    assert asked.prompts == {
        name: tokenizer(text).input_ids for name, text in (("one", "one!"), ("two", "two!"), ("text", "plain"))
    }
    assert asked.refused == {}


def test_chats_for_a_target_without_a_chat_template(models: Models) -> None:
    (Path(models.question.target) / "chat_template.jinja").unlink()
    (asked,) = tokenized(models, [chats("one")])
    assert list(asked.prompts) == ["text"]
    assert asked.refused["one"].startswith("Cannot use chat template")
