import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_pard.demo import demo_path
from vllm_pard.draft_vocab_file import read_draft_vocab

Run = Callable[..., Any]
TARGET = str(demo_path("target"))


def tokenize(text: str) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(TARGET)(text, add_special_tokens=False).input_ids)


def test_counts_text_and_answers(run: Run, tmp_path: Path) -> None:
    text, answers, output = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "ids.json"
    text.write_text("Tom has 3 apples.\n" * 4)
    answers.write_text('{"id": 1, "prompt": "What?", "text": "Tom has 7 pears."}\n\n{"answer": "7 pears."}\n')
    texts = ("--text", str(text), "--text", str(answers))
    result = run("vocabulary", TARGET, *texts, "--size", 999, "--output", str(output))
    assert result.exit_code == 0, result.output
    token_ids = read_draft_vocab(str(output))
    counted = {*tokenize(text.read_text()), *tokenize("Tom has 7 pears."), *tokenize("7 pears.")}
    assert counted < set(token_ids)
    assert f"{len(token_ids)} of 2048 tokens, 100.00% of the text: {output}" in result.stdout
    assert f"warning: the text has only {len(token_ids)} different tokens, special ones included" in result.stderr
    assert "--size 999 needs more text" in result.stderr

    few = run("vocabulary", "demo", "--text", str(text), "--size", 8, "--output", str(output))
    assert "8 of 2048 tokens" in few.stdout
    assert few.stderr == ""
    assert len(json.loads(output.read_text())) == 8, "an old file is replaced"


def test_a_text_may_be_longer_than_a_prompt(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.tokenization_utils_base import logger

    warnings: list[object] = []
    monkeypatch.setattr(logger, "warning", lambda *arguments: warnings.append(arguments))
    (tmp_path / "a.txt").write_text("Tom has 3 apples.\n" * 400)
    options = ("--text", str(tmp_path / "a.txt"), "--size", 8, "--output", str(tmp_path / "ids.json"))
    assert run("vocabulary", "demo", *options).exit_code == 0
    assert warnings == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "can't read the text file '.*a.txt': No such file"),
        ("a.txt", b" \n", "'.*a.txt' has no text"),
        ("a.txt", b"\xff", "must be UTF-8 text; byte 0 is not"),
        ("a.jsonl", b'{"text": "x"}\n{', "line 2 of '.*a.jsonl' is not valid JSON: .* at column 2"),
        ("a.jsonl", b'{"prompt": "x"}', "line 1 of .* needs a text as one of text, response, "),
        ("a.jsonl", b'{"text": 3}', "line 1 of .* needs a text"),
        ("a.jsonl", b"[1]", "line 1 of .* needs a text"),
    ],
)
def test_wrong_text(name: str, content: bytes | None, message: str, run: Run, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    output = tmp_path / "ids.json"
    result = run("vocabulary", TARGET, "--text", str(tmp_path / name), "--size", 8, "--output", str(output))
    assert result.exit_code == 2
    assert re.search(message, result.stderr.replace("\n", " "))
    assert not output.exists()


def test_wrong_target_and_output(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some text")
    options = ("--text", str(text), "--size", 8, "--output")
    result = run("vocabulary", str(tmp_path), *options, str(tmp_path / "ids.json"))
    assert result.exit_code == 2
    assert "can't load the tokenizer of" in result.stderr
    result = run("vocabulary", "demo", "--text", str(text), "--size", 2049, "--output", str(tmp_path / "ids.json"))
    assert f"--size must be at most 2048, all tokens of {TARGET!r}; got 2049" in result.stderr
    assert list(tmp_path.iterdir()) == [text]
    result = run("vocabulary", TARGET, *options, str(tmp_path / "none" / "ids.json"))
    assert "it needs a folder that exists" in result.stderr
