"""What several commands say, read and refuse in the same way."""

import json
import shlex
from enum import Enum
from typing import Any

from vllm_pard.catalog import short_name
from vllm_pard.errors import PardError

# As everywhere a short name beats a folder: a command means the same in every folder.
TARGET_HELP = 'Folder or Hugging Face name of the target; "demo": the bundled one (a folder of that name: ./demo).'
MODE_HELP = (
    "Of a PARD-2 draft: reads features of its target (dependent), or none; auto: dependent where that can be had."
)
DTYPES = ("auto", "bfloat16", "float", "float16", "float32", "half")  # vLLM's


class Engine(str, Enum):
    """What runs the models."""

    vllm = "vllm"
    reference = "reference"


class Mode(str, Enum):
    """What a PARD-2 draft is to read."""

    auto = "auto"
    dependent = "dependent"
    independent = "independent"


class UsageError(PardError):
    """Options that don't go together, or don't parse."""


def measure_command(target: str, draft: str | None) -> str:
    """What tells whether a draft pays."""
    words = ["vllm-pard", "doctor", short_name(target), *([draft] if draft else []), "--measure"]
    return shlex.join(words)


def whole_numbers(option: str, text: str) -> list[int]:
    """A list such as 1,4,16, each number once, in ascending order."""
    items = [item.strip() for item in text.split(",")]
    if not all(item.isdecimal() and int(item) > 0 for item in items):
        raise UsageError(f"{option} must be numbers from 1 on, such as 1,4,16; got {text!r}")
    return sorted({int(item) for item in items})


def json_object(option: str, text: str | None) -> dict[str, Any]:
    """The JSON object given to an option; empty if none is."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{option} is not valid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(value, dict):
        raise UsageError(f'{option} must be a JSON object such as {{"key": 1}}; got {text}')
    return value


def check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise UsageError(f"--dtype must be auto, float32, bfloat16 or float16; got {dtype!r}")
