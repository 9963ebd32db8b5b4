"""Values of a checkpoint's config.json, each checked where it is read."""

import sys
from collections.abc import Mapping
from typing import Any

from vllm_pard.errors import PardError


class CheckpointError(PardError):
    """A checkpoint can't be read, or is not a PARD draft."""


def positive_int(model: str, config: Mapping[str, Any], key: str) -> int | None:
    """A whole number above 0, or None where the config has none."""
    value = config.get(key)
    if value is None:
        return None
    if not is_int(value) or value < 1:
        raise CheckpointError(f"{key} in the config.json of {model!r} must be a whole number above 0; got {value!r}")
    return int(value)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether this is a number that a float can hold; JSON as Python reads it has others."""
    return (is_int(value) or isinstance(value, float)) and abs(value) <= sys.float_info.max
