"""How a row of each public set becomes a prompt, from files that look like the published ones."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from vllm_pard.bench.prompt_formats import PUBLIC_SETS, SPEED_BENCH_PLACEHOLDER
from vllm_pard.bench.prompt_sets import load_prompts
from vllm_pard.prompts import Prompt, PromptError

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}

# Rows with the fields of the published sets; the texts are ours.
ROWS: dict[str, dict[str, Any]] = {
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": 'from typing import List\n\n\ndef count(items: List[int]) -> int:\n    """Count."""\n',
        "canonical_solution": "    return len(items)\n",
        "test": "def check(candidate):\n    assert candidate([1]) == 1\n",
        "entry_point": "count",
    },
    "gsm8k": {"question": "Two and three apples: how many?", "answer": "2 + 3 = 5\n#### 5"},
    "math-500": {
        "problem": "Compute $1+1$.",
        "solution": "$1+1=\\boxed{2}$",
        "answer": "2",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "test/algebra/1.json",
    },
    "mt-bench": {"question_id": 81, "category": "writing", "turns": ["Write a letter.", "Shorten it."]},
    "spec-bench": {"question_id": 265, "category": "qa", "turns": ["Who wrote it?"], "reference": ["Nobody."]},
    "speed-bench": {
        "question_id": "f" * 32,
        "category": "coding",
        "sub_category": "python",
        "turns": ["Sort a list.", "Now backwards."],
        "source": "x",
        "src_id": "1",
        "difficulty": "easy",
        "multiturn": True,
    },
}
EXPECTED: dict[str, Prompt] = {
    "humaneval": Prompt(
        id="HumanEval/0",
        messages=[
            SYSTEM,
            {
                "role": "user",
                "content": "Complete the code I provided.from typing import List\n\n\n"
                'def count(items: List[int]) -> int:\n    """Count."""\n',
            },
        ],
    ),
    "gsm8k": Prompt(id="gsm8k-1", messages=[SYSTEM, {"role": "user", "content": "Two and three apples: how many?"}]),
    "math-500": Prompt(id="test/algebra/1.json", messages=[SYSTEM, {"role": "user", "content": "Compute $1+1$."}]),
    "mt-bench": Prompt(id="81", messages=[SYSTEM, {"role": "user", "content": "Write a letter."}]),
    "spec-bench": Prompt(id="265", messages=[{"role": "user", "content": "Who wrote it?"}]),
    "speed-bench": Prompt(id="f" * 32, messages=[{"role": "user", "content": "Sort a list."}]),
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def load(name: str | Path, category: str | None = None) -> list[Prompt]:
    return load_prompts(str(name), num_prompts=None, seed=0, category=category).prompts


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_public_set_from_a_file(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"copy{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist([ROWS[name]]), path)
    else:
        path.write_text(json.dumps([ROWS[name]] if suffix == ".json" else ROWS[name]))
    found = load_prompts(f"{name}={path}", num_prompts=None, seed=0)
    assert found.prompts == [EXPECTED[name]]
    assert (found.name, found.source, found.num_available) == (name, f"copy{suffix}", 1)


def test_speed_bench_as_nvidia_prepares_it(tmp_path: Path) -> None:
    row = {key: value for key, value in ROWS["speed-bench"].items() if key != "turns"}
    row["messages"] = [{"role": "user", "content": turn} for turn in ROWS["speed-bench"]["turns"]]
    assert load(f"speed-bench={write(tmp_path / 'qualitative.jsonl', row)}") == [EXPECTED["speed-bench"]]


def test_the_authors_own_files(tmp_path: Path) -> None:
    """Their rows hold the wrapped prompt, so HumanEval's instruction must not come twice."""
    content = "Complete the code I provided.\ndef f():\n"
    path = write(tmp_path / "humaneval.jsonl", {"data": content}, {"data": "next"})
    messages = [SYSTEM, {"role": "user", "content": content}]
    for name in (f"humaneval={path}", str(path)):
        prompts = load(name)
        assert prompts[0] == Prompt(id="humaneval-1", messages=messages)
        assert [prompt.id for prompt in prompts] == ["humaneval-1", "humaneval-2"]


def test_speed_bench_placeholders_are_no_prompts(tmp_path: Path) -> None:
    masked = ROWS["speed-bench"] | {"turns": [f"{SPEED_BENCH_PLACEHOLDER}\n\n{{article}}"], "category": "summarization"}
    name = f"speed-bench={write(tmp_path / 'test.jsonl', ROWS['speed-bench'], masked)}"
    with pytest.raises(PromptError, match=r"^line 2 of .*test.jsonl' is a placeholder .* speed-bench=qualitative"):
        load(name)
    assert load(name, category="coding") == [EXPECTED["speed-bench"]]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "x.jsonl",
            '{"question": "?"}\n{"answer": 1, "id": 2}',
            r"line 2 of '.*x.jsonl' needs a text as its \"question\" ",
        ),
        ("x.jsonl", '{"answer": 1, "id": 2}', 'or "data", as gsm8k has it; its fields are answer, id$'),
        ("x.jsonl", '{"question": " "}', "line 1 of .* needs a text"),
        ("x.jsonl", '{"question": []}', "line 1 of .* needs a text"),
        ("x.jsonl", "{}", "its fields are none$"),
        ("x.jsonl", '\n{"question": "?"}\n{bad', "line 3 of .* is not valid JSON: .* at column 2$"),
        ("x.jsonl", "[1]", "line 1 of .* must be an object; got list"),
        ("x.jsonl", "\n \n", "the prompt set 'gsm8k' has no prompts in x.jsonl$"),
        ("x.json", "[]", "the prompt set 'gsm8k' has no prompts in x.json$"),
        ("x.json", '{"question": "?"}', "must hold a list of objects; got dict"),
        ("x.json", '[{"question": "?"}, 3]', "row 2 of .* must be an object; got int"),
        ("x.json", "[\n{bad", "is not valid JSON: .* at line 2 column 2$"),
        ("x.jsonl", b"ab\xff", "must be UTF-8 text; byte 2 is not"),
        ("x.parquet", b"ab", "can't read the prompt file .*parquet"),
    ],
)
def test_wrong_file(file: str, text: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PromptError, match=message):
        load(f"gsm8k={path}")
