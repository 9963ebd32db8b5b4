"""A batch of prompts, and what the engines that answer it yield."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vllm_pard.prompts import Prompt

# "starting", "ready", then "finished" or "refused" for each prompt, "progress" and "costs" in between, "done" last
Events = Iterator[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What to answer, and with what."""

    options: dict[str, Any]  # of vLLM's LLM class
    speculative: dict[str, Any] | None
    prompts: list[Prompt]
    sampling: dict[str, Any]
    reference: bool
    verbose: bool
