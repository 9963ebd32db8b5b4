"""`vllm-pard generate --engine reference`: one prompt after the other, on Transformers."""

import secrets
import time
from dataclasses import asdict
from typing import Any

from vllm_pard.catalog import choose_draft
from vllm_pard.checkpoint import check_tokenizers, load_config, load_tokenizer
from vllm_pard.cli.batch.batch import Batch, Events
from vllm_pard.cli.batch.checks import REFERENCE_METHODS
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.prompts import prompt_token_ids
from vllm_pard.reference.engine import Method, generate
from vllm_pard.reference.models import best_device, eos_token_ids, load_model
from vllm_pard.silence import without_progress_bars


def reference_events(batch: Batch) -> Events:
    """The events that an engine process would send."""
    speculative = batch.speculative
    yield {"event": "starting"}
    target_name = batch.options["model"]
    target_config = load_config(target_name)
    method: Method = "ar"
    draft, drafting, notes = None, {"num_speculative_tokens": 0, "mask_token_id": None}, []
    if speculative is not None:
        method = REFERENCE_METHODS[speculative["method"]]
        checkpoint, num_speculative_tokens = choose_draft(
            target_name,
            target_config,
            draft=speculative.get("model"),
            num_speculative_tokens=speculative.get("num_speculative_tokens"),
            mask_token_id=speculative.get("mask_token_id"),
        )
        check_tokenizers(target_name, checkpoint.path)
        with without_progress_bars():
            draft = load_model(checkpoint.path, batch.options["dtype"], best_device())
        drafting = {"num_speculative_tokens": num_speculative_tokens, "mask_token_id": checkpoint.mask_token_id}
        notes = [f"reference engine: {method}, draft {checkpoint.path}, K={num_speculative_tokens}"]
    with without_progress_bars():
        target = load_model(target_name, batch.options["dtype"], best_device())
    yield {"event": "ready", "notes": notes}
    yield from _answer(batch, target, draft, method, drafting)


def _answer(batch: Batch, target: Any, draft: Any, method: Method, drafting: dict[str, Any]) -> Events:
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
                method=method,
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
