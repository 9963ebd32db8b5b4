import json
from pathlib import Path

import pytest

from vllm_pard.prompts import Prompt, PromptError, collect_prompts, read_prompts

CHAT = [{"role": "user", "content": "hi"}]


def write(tmp_path: Path, text: str | bytes, suffix: str = ".txt") -> Path:
    path = tmp_path / f"prompts{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_text_file(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffone\r\n\n  two\u2028still two \n")
    assert read_prompts(path) == [Prompt(id="line-1", text="one"), Prompt(id="line-3", text="  two\u2028still two ")]


def test_json_lines(tmp_path: Path) -> None:
    lines = [{"prompt": "one"}, {"id": 7, "messages": CHAT}, {"id": "x", "prompt": "a\u2028b"}]
    path = write(tmp_path, "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines), ".jsonl")
    assert read_prompts(path) == [
        Prompt(id="line-1", text="one"),
        Prompt(id="7", messages=CHAT),
        Prompt(id="x", text="a\u2028b"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", "line 2 of .* is not valid JSON: .* at column 2"),
        ("[1]", 'line 2 of .* must be an object with either "prompt" or "messages"'),
        ('{"text": "x"}', 'either "prompt" or "messages"'),
        ('{"prompt": "x", "messages": []}', 'either "prompt" or "messages"'),
        ('{"prompt": " "}', "line 2 of .* needs a text as its \"prompt\"; got ' '"),
        ('{"prompt": 3}', "needs a text"),
        ('{"messages": []}', 'needs "messages" to be a list'),
        ('{"messages": [{"role": "user"}]}', 'needs "messages" to be a list'),
    ],
)
def test_bad_json_line(line: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, f'{{"prompt": "fine"}}\n{line}\n', ".jsonl")
    with pytest.raises(PromptError, match=message):
        read_prompts(path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"can't read the prompt file .*missing.* No such file"):
        read_prompts(tmp_path / "missing")
    with pytest.raises(PromptError, match=r"can't read the prompt file .* Is a directory"):
        read_prompts(tmp_path)
    with pytest.raises(PromptError, match="must be UTF-8 text; byte 2 is not"):
        read_prompts(write(tmp_path, b"ab\xff"))
    with pytest.raises(PromptError, match="has no prompts"):
        read_prompts(write(tmp_path, "\n  \n"))


def test_collect(tmp_path: Path) -> None:
    path = write(tmp_path, "from a file\n")
    assert collect_prompts(["from an option"], path, chat=False) == [
        Prompt(id="prompt-1", text="from an option"),
        Prompt(id="line-1", text="from a file"),
    ]


def test_chat_wraps_plain_prompts_only(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"messages": CHAT}), ".jsonl")
    plain, given = collect_prompts(["hello"], path, chat=True)
    assert plain.messages == [{"role": "user", "content": "hello"}]
    assert given.messages == CHAT
    assert given.as_record == {"id": "line-1", "messages": CHAT}


def test_nothing_to_answer() -> None:
    with pytest.raises(PromptError, match="nothing to answer"):
        collect_prompts([], None, chat=False)
    with pytest.raises(PromptError, match="got an empty one"):
        collect_prompts(["  "], None, chat=False)


@pytest.mark.parametrize("content", [{"prompt": "a \ud83d b"}, {"messages": [{"role": "user", "content": "\ud83d"}]}])
def test_half_a_surrogate_pair(content: dict[str, object], tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(content), ".jsonl")
    with pytest.raises(PromptError, match=r"the prompt 'line-1' is not Unicode text: take '\\ud83d' out of it"):
        collect_prompts([], path, chat=False)


def test_ids_are_different(tmp_path: Path) -> None:
    path = write(tmp_path, '{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', ".jsonl")
    with pytest.raises(PromptError, match="'a' comes twice"):
        collect_prompts([], path, chat=False)
