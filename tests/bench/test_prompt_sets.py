import json
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_pard import demo
from vllm_pard.bench.prompt_sets import demo_prompts, load_prompts
from vllm_pard.prompts import Prompt, PromptError


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def questions(path: Path, count: int) -> str:
    return f"gsm8k={write(path / 'test.jsonl', *({'question': f'{number}?'} for number in range(count)))}"


def ids(name: str, num_prompts: int | None, seed: int = 0) -> list[str]:
    return [prompt.id for prompt in load_prompts(name, num_prompts=num_prompts, seed=seed).prompts]


def load(name: str | Path, category: str | None = None) -> list[Prompt]:
    return load_prompts(str(name), num_prompts=None, seed=0, category=category).prompts


def test_file_of_ones_own(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    path = write(tmp_path / "mine.jsonl", {"prompt": "one"}, {"id": 7, "messages": chat})
    found = load_prompts(str(path), num_prompts=None, seed=0)
    assert found.prompts == [Prompt(id="line-1", text="one"), Prompt(id="7", messages=chat)]
    assert (found.name, found.source) == ("mine.jsonl", "mine.jsonl")
    (tmp_path / "a=b.txt").write_text("two\n")
    assert load(tmp_path / "a=b.txt") == [Prompt(id="line-1", text="two")]


def test_bundled_sets() -> None:
    found = load_prompts("demo", num_prompts=None, seed=0)
    assert found.source == "bundled with vllm-pard: word_problems, code"
    in_turn = [demo.prompts("word_problems")[0], demo.prompts("code")[0], demo.prompts("word_problems")[1]]
    assert found.prompts[:3] == [Prompt(id=str(i), text=row["prompt"]) for i, row in enumerate(in_turn, start=1)]
    assert len(found.prompts) == len(demo_prompts(None)) == 208
    for split in demo.SPLITS:
        assert [prompt.text for prompt in load(f"demo:{split}")] == [row["prompt"] for row in demo.prompts(split)]


def test_sample_is_seeded_and_in_order(tmp_path: Path) -> None:
    name = questions(tmp_path, 50)
    everything = ids(name, None)
    sample = ids(name, 8, seed=3)
    assert sample == ["gsm8k-4", "gsm8k-12", "gsm8k-18", "gsm8k-20", "gsm8k-23", "gsm8k-26", "gsm8k-47", "gsm8k-50"]
    assert sample == [name for name in everything if name in sample]
    assert sample != ids(name, 8, seed=4)
    assert set(sample) < set(ids(name, 20, seed=3)) < set(everything)


@pytest.mark.parametrize("num_prompts", [5, 6, 1000])
def test_no_prompt_comes_twice(num_prompts: int, tmp_path: Path) -> None:
    found = load_prompts(questions(tmp_path, 5), num_prompts=num_prompts, seed=1)
    assert [prompt.id for prompt in found.prompts] == [f"gsm8k-{number}" for number in range(1, 6)]
    assert found.num_available == 5


def test_category(tmp_path: Path) -> None:
    rows = [{"question_id": i, "category": c, "turns": [f"{c}?"]} for i, c in enumerate(["qa", "rag", "qa"])]
    name = f"spec-bench={write(tmp_path / 'question.jsonl', *rows)}"
    found = load_prompts(name, num_prompts=None, seed=0, category="qa")
    assert [prompt.id for prompt in found.prompts] == ["0", "2"]
    assert (found.category, found.num_available) == ("qa", 2)
    with pytest.raises(PromptError, match=r"^spec-bench has no category 'QA'; it has qa, rag$"):
        load(name, category="QA")


def test_sets_without_categories(tmp_path: Path) -> None:
    for name in ("demo", questions(tmp_path, 1), str(write(tmp_path / "mine.jsonl", {"prompt": "one"}))):
        with pytest.raises(PromptError, match="has no categories; leave 'qa' out"):
            load(name, category="qa")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gsm8",
            "^there is no prompt set 'gsm8'; did you mean 'gsm8k'. Known: demo, demo:word_problems, .*speed-bench;",
        ),
        ("spec_bench", "did you mean 'spec-bench'"),
        ("HumanEval", "did you mean 'humaneval'"),
        ("demo:codes", "did you mean 'demo:code'"),
        ("gsmk8=/data/test.jsonl", "no prompt set 'gsmk8'; did you mean 'gsm8k'"),
        ("sharegpt", "no prompt set 'sharegpt'. Known: .*from a .jsonl or .txt file, .* NAME=FILE$"),
        ("random", "random tokens are refused .*inflates acceptance; use demo, gsm8k"),
        ("missing.jsonl", "can't read the prompt file 'missing.jsonl': No such file"),
        ("runs/a=b/missing.txt", "can't read the prompt file 'runs/a=b/missing.txt': No such file"),
        ("gsm8k=missing.jsonl", "can't read the prompt file 'missing.jsonl': No such file"),
        ("gsm8k=missing.parquet", "can't read the prompt file 'missing.parquet': No such file"),
        ("gsm8k=test.csv", "gsm8k=FILE needs a file in .jsonl, .json, .parquet; got 'test.csv'"),
        ("gsm8k=", "gsm8k=FILE needs a file in .*; got ''"),
        ("", "can't read the prompt file '.': Is a directory"),
    ],
)
def test_wrong_name(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PromptError, match=message):
        load(name)


def test_zero_prompts(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"'mt-bench' has no prompts in empty.json$"):
        load(f"mt-bench={write(tmp_path / 'empty.json', [])}", category="qa")
    with pytest.raises(PromptError, match="has no prompts"):
        load(write(tmp_path / "empty.jsonl"))
    with pytest.raises(PromptError, match="must be at least 1; got 0"):
        ids("demo", 0)


def test_ids_are_different(tmp_path: Path) -> None:
    own = write(tmp_path / "own.jsonl", {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"})
    twice = write(tmp_path / "twice.jsonl", *2 * [{"question_id": 81, "turns": ["x"]}])
    for name, prompt_id in ((str(own), "a"), (f"mt-bench={twice}", "81")):
        with pytest.raises(PromptError, match=f"needs an id of its own; '{prompt_id}' comes twice"):
            load(name)


def test_sources_name_no_folder(tmp_path: Path) -> None:
    own = write(tmp_path / "own.txt", "hello")
    for name in (str(own), questions(tmp_path, 3)):
        found = load_prompts(name, num_prompts=None, seed=0)
        assert str(tmp_path) not in found.name + found.source + "".join(prompt.id for prompt in found.prompts)


def test_import_is_light() -> None:
    code = "import sys, vllm_pard.bench.prompt_sets; print([n for n in sys.argv[1:] if n in sys.modules])"
    heavy = ["torch", "transformers", "datasets", "huggingface_hub", "pyarrow", "vllm"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
