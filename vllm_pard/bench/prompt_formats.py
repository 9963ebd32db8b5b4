"""The public prompt sets: where each one lies, which of its fields count, and how a row becomes a prompt."""

import errno
import importlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vllm_pard.files import read_text
from vllm_pard.prompts import Prompt, PromptError

# The authors of PARD send every benchmark with this system prompt (AMD-AGI/PARD, pard/pard_infer.py).
PARD_SYSTEM_PROMPT = "You are a helpful assistant."
# The one field of their own files, datas/bmk/*.jsonl: the prompt with its instruction, without the system prompt.
PARD_FIELD = "data"
# Stands in nvidia/SPEED-Bench where a text's license forbids a copy.
SPEED_BENCH_PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
INSTALL = "pip install 'vllm-pard[bench]'"


class Row(NamedTuple):
    """One row of a set; `place` is what a message calls it."""

    number: int
    place: str
    fields: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """One public set, as published; of several turns the first is sent."""

    hub: str | None = None
    config: str | None = None
    split: str = "test"
    url: str = ""  # of the file, where there is no hub dataset
    prompt_fields: tuple[str, ...]  # a row has one of them
    id_field: str | None = None
    category_field: str | None = None
    instruction: str = ""  # stands directly before the prompt
    system_prompt: str | None = None

    def prompt(self, name: str, row: Row) -> Prompt:
        """The row as a chat."""
        known = (*self.prompt_fields, PARD_FIELD)
        field = next((field for field in known if field in row.fields), None)
        text = None if field is None else _first_turn(row.fields[field])
        if text is None:
            wanted = " or ".join(f'"{field}"' for field in known)
            present = ", ".join(map(str, row.fields)) or "none"
            raise PromptError(f"{row.place} needs a text as its {wanted}, as {name} has it; its fields are {present}")
        if text.startswith(SPEED_BENCH_PLACEHOLDER):
            raise PromptError(
                f"{row.place} is a placeholder for a licensed text; fill all of them in with NVIDIA-NeMo/Skills' "
                f"nemo_skills/dataset/speed-bench/prepare.py and give {name}=qualitative.jsonl"
            )
        content = text if field == PARD_FIELD else self.instruction + text
        messages = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        row_id = row.fields.get(self.id_field) if self.id_field else None
        prompt_id = f"{name}-{row.number}" if row_id is None else str(row_id)
        return Prompt(id=prompt_id, messages=[*messages, {"role": "user", "content": content}])


PARD_FILE = PromptFormat(prompt_fields=(), system_prompt=PARD_SYSTEM_PROMPT)

PUBLIC_SETS = {
    "humaneval": PromptFormat(
        hub="openai/openai_humaneval",
        config="openai_humaneval",
        prompt_fields=("prompt",),
        id_field="task_id",
        # Nothing between the two, as in AMD-AGI/PARD's datas/bmk/humaneval.jsonl: most prompts begin with a newline.
        instruction="Complete the code I provided.",
        system_prompt=PARD_SYSTEM_PROMPT,
    ),
    "gsm8k": PromptFormat(
        hub="openai/gsm8k", config="main", prompt_fields=("question",), system_prompt=PARD_SYSTEM_PROMPT
    ),
    "math-500": PromptFormat(
        hub="HuggingFaceH4/MATH-500",
        prompt_fields=("problem",),
        id_field="unique_id",
        category_field="subject",
        system_prompt=PARD_SYSTEM_PROMPT,
    ),
    "mt-bench": PromptFormat(
        hub="philschmid/mt-bench",
        split="train",
        prompt_fields=("turns",),
        id_field="question_id",
        category_field="category",
        system_prompt=PARD_SYSTEM_PROMPT,
    ),
    "spec-bench": PromptFormat(
        url="https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl",
        prompt_fields=("turns",),
        id_field="question_id",
        category_field="category",
    ),
    "speed-bench": PromptFormat(
        hub="nvidia/SPEED-Bench",
        config="qualitative",
        prompt_fields=("turns", "messages"),  # on the hub, and as NVIDIA's prepare.py writes them
        id_field="question_id",
        category_field="category",
    ),
}


def _first_turn(value: Any) -> str | None:
    """The text of a field that holds a text, a list of turns or a list of messages."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value.strip() else None


def read_rows(path: Path) -> list[Row]:
    """The objects of a .jsonl, .json or .parquet file."""
    if path.suffix == ".parquet":
        return _rows(path, "row", enumerate(_read_parquet(path), start=1))
    text = read_text(path, "prompt", PromptError)
    if path.suffix == ".json":
        objects = _parse(str(path), text)
        if not isinstance(objects, list):
            raise PromptError(
                f"the prompt file {str(path)!r} must hold a list of objects; got {type(objects).__name__}"
            )
        return _rows(path, "row", enumerate(objects, start=1))
    # Not splitlines: a JSON text may hold other line separators as they are.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return _rows(path, "line", ((number, _parse(f"line {number} of {str(path)!r}", line)) for number, line in lines))


def _rows(path: Path, unit: str, numbered: Iterable[tuple[int, Any]]) -> list[Row]:
    rows = [Row(number, f"{unit} {number} of {str(path)!r}", fields) for number, fields in numbered]
    for row in rows:
        if not isinstance(row.fields, dict):
            raise PromptError(f"{row.place} must be an object; got {type(row.fields).__name__}")
    return rows


def _parse(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise PromptError(f"{place} is not valid JSON: {error.msg} at {where}") from error


def _read_parquet(path: Path) -> list[Any]:
    if not path.exists():
        raise _unreadable(path, os.strerror(errno.ENOENT))
    try:
        parquet = importlib.import_module("pyarrow.parquet")  # comes with `datasets`; has no types
    except ImportError as error:
        raise PromptError(f"reading {path.name!r} needs `datasets`: {INSTALL}, or give a .jsonl file") from error
    try:
        with path.open("rb") as file:
            return list(parquet.read_table(file).to_pylist())
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except ValueError as error:  # Arrow's own
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str | None) -> PromptError:
    return PromptError(f"can't read the prompt file {str(path)!r}: {reason}")
