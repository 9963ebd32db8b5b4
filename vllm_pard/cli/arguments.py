"""What several commands say and read in the same way."""

import json
from typing import Any

from vllm_pard.errors import PardError

# As everywhere a short name beats a folder: a command means the same in every folder.
TARGET_HELP = 'Folder or Hugging Face name of the target; "demo": the bundled one (a folder of that name: ./demo).'


class UsageError(PardError):
    """Options that don't go together, or don't parse."""


def whole_numbers(option: str, text: str) -> list[int]:
    """A list such as 1,4,16, each number once, in ascending order."""
    items = [item.strip() for item in text.split(",")]
    if not all(item.isdecimal() and int(item) > 0 for item in items):
        raise UsageError(f"{option} must be numbers from 1 on, such as 1,4,16; got {text!r}")
    return sorted({int(item) for item in items})


def json_object(option: str, text: str | None) -> dict[str, Any]:
    """An option that is a JSON object; an empty one where it is left out."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{option} is not valid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(value, dict):
        raise UsageError(f'{option} must be a JSON object such as {{"key": 1}}; got {text}')
    return value
