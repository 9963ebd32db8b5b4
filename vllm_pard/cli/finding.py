"""One thing that `vllm-pard doctor` has looked at."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """A line of its answer."""

    subject: str
    status: Status
    text: str
