"""What to train on: the entries under `data:` in a training config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from vllm_pard.errors import PardError

__all__ = ["DataConfig", "DataError", "Document", "SourceConfig"]


class DataError(PardError):
    """Data can't be trained on."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where records come from."""

    path: str  # a .jsonl, .json or .parquet file, a folder, a glob, or the name of a dataset on the hub
    split: str = "train"  # of a folder or a hub dataset
    name: str | None = None  # configuration of a hub dataset
    max_samples: int | None = None  # the first records only

    def __post_init__(self) -> None:
        if not self.path:
            raise DataError('"path" of the data must name a file, a folder, a glob or a hub dataset; it is empty')
        _check_at_least("max_samples", self.max_samples, 1)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which records, and how they become rows."""

    sources: tuple[SourceConfig, ...]
    max_length: int  # L, tokens of a packed row, and so of a document
    train_on: Literal["answers", "all"] = "answers"
    too_long: Literal["truncate", "drop"] = "truncate"
    malformed: Literal["refuse", "skip"] = "refuse"
    streaming: bool = False
    chat_template_options: Mapping[str, Any] = field(default_factory=dict)  # e.g. enable_thinking

    def __post_init__(self) -> None:
        if not self.sources:
            raise DataError('"sources" of the data must name at least one file, folder or hub dataset; there is none')
        _check_at_least("max_length", self.max_length, 2)
        choices = {"train_on": ("answers", "all"), "too_long": ("truncate", "drop"), "malformed": ("refuse", "skip")}
        for key, known in choices.items():
            if (value := getattr(self, key)) not in known:
                raise DataError(f'"{key}" of the data must be {" or ".join(known)}; got {value!r}')


class Document(NamedTuple):
    """One tokenized sample."""

    tokens: list[int]
    is_trained: list[bool]  # tokens that the draft learns to predict; never the first
    prompt: int = 0  # a digest of what is answered, 64 bits: equal prompts stay on one side of a split


def _check_at_least(key: str, value: int | None, least: int) -> None:
    if value is not None and (not isinstance(value, int) or value < least):
        raise DataError(f'"{key}" of the data must be a whole number of at least {least}; got {value!r}')
