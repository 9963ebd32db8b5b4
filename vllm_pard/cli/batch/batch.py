"""A batch of prompts, and what the engines that answer it yield."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vllm_pard.checkpoint import is_local
from vllm_pard.conditions import portable
from vllm_pard.prompts import Prompt

# "starting", "ready", then "finished" or "refused" for each prompt, "progress" and "costs" in between, "done" last
Events = Iterator[dict[str, Any]]

# Keys of engine arguments and of a speculative config with which a target says something else.
CHANGE_ANSWERS = ("hf_overrides", "kv_cache_dtype", "quantization", "rejection_sample_method", "revision", "tokenizer")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What to answer, and with what."""

    options: dict[str, Any]  # of vLLM's LLM class
    speculative: dict[str, Any] | None
    prompts: list[Prompt]
    sampling: dict[str, Any]
    reference: bool
    verbose: bool

    def seed_of(self, prompt: Prompt) -> int | None:
        """Answers to one prompt are to differ, though they can be repeated."""
        seed: int | None = self.sampling["seed"]
        return None if seed is None else seed + prompt.sample

    @property
    def settings(self) -> dict[str, Any]:
        """What the answers depend on, for their records. A draft is left out: with any, outputs are the target's."""
        target = self.options["model"]
        chosen = {"target": portable(os.path.abspath(target)) if is_local(target) else target}
        chosen |= {"dtype": self.options["dtype"], **self.sampling}
        given = (self.speculative or {}) | self.options
        return chosen | {key: given[key] for key in CHANGE_ANSWERS if key in given}
