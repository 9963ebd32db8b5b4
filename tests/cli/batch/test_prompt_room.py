"""Prompts that surely don't fit are refused without an engine, and no prompt that vLLM would take."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import edit_config

from vllm_pard.checkpoint import load_tokenizer
from vllm_pard.cli.batch.prompt_room import too_long
from vllm_pard.demo import demo_path
from vllm_pard.prompts import Prompt

Run = Callable[..., Any]


def lengths(*counts: int) -> list[Prompt]:
    """Texts and chats of this many letters, which the tiny tokenizer takes for as many tokens."""
    texts = [Prompt(id=f"text-{count}", text="x" * count) for count in counts]
    chats = [Prompt(id=f"chat-{count}", messages=[{"role": "user", "content": "x" * count}]) for count in counts]
    return texts + chats


def test_only_what_is_longer_than_the_room(tiny_pair: tuple[Path, Path]) -> None:
    options = {"model": str(tiny_pair[0])}
    refused = too_long(lengths(511, 512, 513), options)
    assert refused["text-513"] == "the target has room for 512 tokens, and the prompt has 513"
    # The template adds "user: ", a newline and "assistant:"; a chat of 512 letters is left to the engine.
    assert refused["chat-513"] == "the target has room for 512 tokens, and the prompt has 530"
    assert refused.keys() == {"text-513", "chat-513"}
    assert too_long(lengths(64, 65), options | {"max_model_len": 64}).keys() == {"text-65", "chat-65"}


def test_bytes_are_no_tokens() -> None:
    target = str(demo_path("target"))
    text = "Question: Tom has three apples. " * 60  # 1920 bytes
    assert too_long([Prompt(id="a", text=text), Prompt(id="b", text=text * 9)], {"model": target}).keys() == {"b"}
    num_tokens = len(load_tokenizer(target)(text).input_ids)
    for room, refused in ((num_tokens, set()), (num_tokens - 1, {"a"})):
        assert too_long([Prompt(id="a", text=text)], {"model": target, "max_model_len": room}).keys() == refused


@pytest.mark.parametrize(
    "options",
    [
        {"model": "org/of-the-hub", "max_model_len": 64},
        {"tokenizer": "other"},
        {"tokenizer_mode": "slow"},
        {"hf_overrides": {"max_position_embeddings": 4096}},
    ],
)
def test_what_is_left_to_the_engine(options: dict[str, Any], tiny_pair: tuple[Path, Path]) -> None:
    assert too_long(lengths(9999), {"model": str(tiny_pair[0])} | options) == {}


@pytest.mark.parametrize("name", ["params.json", "tekken.json", "tokenizer.model.v3"])
def test_files_of_another_tokenizer(name: str, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    target = edit_config(tiny_pair[0], tmp_path / "target")
    (tmp_path / "target" / name).write_text("{}")
    assert too_long(lengths(9999), {"model": target}) == {}


def test_a_chat_without_a_template_is_left_to_the_engine(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    target = edit_config(tiny_pair[0], tmp_path / "target")
    (tmp_path / "target" / "chat_template.jinja").unlink()
    assert too_long(lengths(9999), {"model": target}).keys() == {"text-9999"}


@pytest.mark.usefixtures("fake_engine")
def test_the_engine_gets_the_others(run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    target = edit_config(tiny_pair[0], tmp_path / "fine")
    arguments = ("generate", target, "--no-pard", "--prompt", "a", "--prompt", "x" * 600, "--output", output)
    result = run(*arguments)
    assert result.exit_code == 1
    assert "prompt-2 was refused: the target has room for 512 tokens, and the prompt has 600" in result.stderr
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == ["prompt-1"]


@pytest.mark.usefixtures("fake_engine")
def test_no_engine_for_nothing(run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """An engine that fails at its start is never started, and no file is left."""
    target = edit_config(tiny_pair[0], tmp_path / "crash-at-start")
    arguments = ("generate", target, "--no-pard", "--output", tmp_path / "out.jsonl")
    assert run(*arguments, "--prompt", "a").exit_code == 2
    result = run(*arguments, "--prompt", "x" * 600)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()
