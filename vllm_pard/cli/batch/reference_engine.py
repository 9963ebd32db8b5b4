"""`vllm-pard generate --engine reference`: one prompt after the other, on Transformers.

PARD-2 drafts are dependent here where the target is their own; vLLM runs them independent.
"""

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm_pard.catalog import choose_draft
from vllm_pard.checkpoint import PardCheckpoint, check_tokenizers, load_config, load_tokenizer
from vllm_pard.cli.batch.batch import Batch, Events
from vllm_pard.cli.batch.checks import REFERENCE_METHODS
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.prompts import prompt_token_ids
from vllm_pard.reference.engine import Method, generate
from vllm_pard.reference.models import best_device, eos_token_ids, load_model
from vllm_pard.silence import without_progress_bars
from vllm_pard.target_proj import TargetProj, target_proj_for

PLAIN: dict[str, Any] = {"method": "ar", "num_speculative_tokens": 0}


def reference_events(batch: Batch) -> Events:
    """The events that an engine process would send."""
    yield {"event": "starting"}
    target_name, dtype, device = batch.options["model"], batch.options["dtype"], best_device()
    drafting = None if batch.speculative is None else _drafting(target_name, batch.speculative)
    with without_progress_bars():
        draft = None if drafting is None else load_model(drafting.checkpoint.path, dtype, device)
        target = load_model(target_name, dtype, device)
    yield {"event": "ready", "notes": [] if drafting is None else [drafting.note]}
    yield from _answer(batch, target, draft, PLAIN if drafting is None else drafting.options)


@dataclass(frozen=True)
class _Drafting:
    """How a draft is to be run."""

    checkpoint: PardCheckpoint
    method: Method
    num_speculative_tokens: int
    target_proj: TargetProj | None  # of PARD-2, if dependent
    reason: str | None  # for PARD-2's mode

    @property
    def options(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "num_speculative_tokens": self.num_speculative_tokens,
            "mask_token_id": self.checkpoint.mask_token_id,
            "target_proj": self.target_proj,
            "draft_vocab": self.checkpoint.read_draft_vocab(),
        }

    @property
    def note(self) -> str:
        words = f"{self.method}, draft {self.checkpoint.path}, K={self.num_speculative_tokens}"
        mode = "independent" if self.target_proj is None else "dependent"
        return f"reference engine: {words}" + (f", {mode}: {self.reason}" if self.reason else "")


def _drafting(target: str, speculative: Mapping[str, Any]) -> _Drafting:
    target_config = load_config(target)
    checkpoint, num_speculative_tokens = choose_draft(
        target,
        target_config,
        draft=speculative.get("model"),
        num_speculative_tokens=speculative.get("num_speculative_tokens"),
        mask_token_id=speculative.get("mask_token_id"),
    )
    check_tokenizers(target, checkpoint.path)
    method = REFERENCE_METHODS[speculative["method"]]
    if method != "pard" or checkpoint.features is None:
        return _Drafting(checkpoint, method, num_speculative_tokens, None, None)
    target_proj, reason = target_proj_for(
        checkpoint,
        load_config(checkpoint.path)["hidden_size"],
        target,
        target_config,
        wanted="independent" if speculative.get("mode") == "target-independent" else None,
    )
    return _Drafting(checkpoint, "pard2", num_speculative_tokens, target_proj, reason)


def _answer(batch: Batch, target: Any, draft: Any, drafting: dict[str, Any]) -> Events:
    tokenizer = load_tokenizer(batch.options["model"])
    end_ids = eos_token_ids(target)
    stats = AcceptanceStats()
    started = time.perf_counter()
    for prompt in batch.prompts:
        seed = batch.seed_of(prompt)
        try:
            [generation] = generate(
                target,
                draft,
                [prompt_token_ids(tokenizer, prompt.text, prompt.messages)],
                max_new_tokens=batch.sampling["max_tokens"],
                temperature=batch.sampling["temperature"],
                seed=secrets.randbits(32) if seed is None else seed,
                eos_token_ids=end_ids,
                **drafting,
            )
        except ValueError as error:  # no room for it, or a chat without a chat template
            yield {"event": "refused", "id": prompt.id, "message": str(error)}
            continue
        stats += generation.stats
        stopped = generation.token_ids[-1] in end_ids
        yield {
            "event": "finished",
            "id": prompt.id,
            "text": tokenizer.decode(generation.token_ids, skip_special_tokens=True),
            "token_ids": generation.token_ids,
            "finish_reason": "stop" if stopped else "length",
        }
    yield {"event": "done", "seconds": time.perf_counter() - started, "stats": asdict(stats)}
