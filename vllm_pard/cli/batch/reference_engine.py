"""`vllm-pard generate --engine reference`: one prompt after the other, on Transformers."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vllm_pard.checkpoint import check_tokenizers, load_config, load_tokenizer
from vllm_pard.cli.batch.batch import Batch, Events
from vllm_pard.cli.batch.checks import REFERENCE_METHODS
from vllm_pard.config import TreeConfig
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.prompts import prompt_token_ids
from vllm_pard.reference.drafting import ParallelDrafting
from vllm_pard.reference.engine import generate
from vllm_pard.reference.models import best_device, eos_token_ids, load_model
from vllm_pard.silence import without_progress_bars

PLAIN: dict[str, Any] = {"method": "ar", "num_speculative_tokens": 0}


def reference_events(batch: Batch) -> Events:
    """The events that an engine process would send."""
    yield {"event": "starting"}
    target_name, dtype, device = batch.options["model"], batch.options["dtype"], best_device()
    drafting = None if batch.speculative is None else _drafting(target_name, batch.speculative)
    options = PLAIN if drafting is None else _options(drafting, batch.speculative or {})
    with without_progress_bars():
        draft = None if drafting is None else load_model(drafting.checkpoint.path, dtype, device)
        target = load_model(target_name, dtype, device)
    yield {"event": "ready", "notes": [] if drafting is None else [_note(drafting, options)]}
    yield from _answer(batch, target, draft, options)


def _drafting(target: str, speculative: Mapping[str, Any]) -> ParallelDrafting:
    found = ParallelDrafting.find(
        target,
        load_config(target),
        draft=speculative.get("model"),
        wanted=speculative.get("mode", "auto") if speculative["method"] == "pard" else "independent",
        num_speculative_tokens=speculative.get("num_speculative_tokens"),
        mask_token_id=speculative.get("mask_token_id"),
    )
    check_tokenizers(target, found.checkpoint.path)
    return found


def _options(drafting: ParallelDrafting, speculative: Mapping[str, Any]) -> dict[str, Any]:
    options = drafting.options | {"num_speculative_tokens": drafting.num_speculative_tokens}
    if speculative.get("tree"):
        options["num_tree_nodes"] = TreeConfig.from_value(speculative["tree"]).nodes
    method = REFERENCE_METHODS[speculative["method"]]
    return options if method == "pard" else options | {"method": method}


def _note(drafting: ParallelDrafting, options: Mapping[str, Any]) -> str:
    words = f"{options['method']}, draft {drafting.checkpoint.path}, K={drafting.num_speculative_tokens}"
    has_mode = options["method"] == "pard2"
    return f"reference engine: {words}" + (f", {drafting.mode}: {drafting.reason}" if has_mode else "")


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
