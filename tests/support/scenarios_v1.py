"""Scenarios for model runner V1, which runs at full CPU speed."""

from typing import Any

from scenarios import compare, generate, greedy, make_llm, prompts, spec_counts

__all__ = ["compare"]


def many_prompts(target: str, draft: str, num_prompts: int, num_drafts: int) -> Any:
    """Prompts of 1 to 99 tokens, plain and PARD."""
    requests = prompts(tuple(1 + (37 * i) % 99 for i in range(num_prompts)), seed=1)
    kw = {"max_num_seqs": 16, "max_num_batched_tokens": 256}
    plain = generate(make_llm(target, None, **kw), requests, greedy(24))
    llm = make_llm(target, draft, num_drafts=num_drafts, **kw)
    pard = generate(llm, requests, greedy(24))
    prompt_ids = [request["prompt_token_ids"] for request in requests]
    return {"prompts": prompt_ids, "plain": plain, "pard": pard, "counts": spec_counts(llm)}


def drafted(target: str, draft: str, spec: dict[str, Any]) -> Any:
    """Outputs and counts of one method. (vLLM's counters are per process: two methods need two.)"""
    llm = make_llm(target, draft, spec=spec)
    return {"tokens": generate(llm, prompts(), greedy()), "counts": spec_counts(llm)}


def without_the_package(target: str) -> Any:
    """A plain engine's whole config and its outputs."""
    llm = make_llm(target, None)
    config = llm.llm_engine.vllm_config
    lines = [f"{name}={getattr(config, name)!r}" for name in sorted(vars(config)) if name != "instance_id"]
    return {"config": lines, "hash": config.compute_hash(), "tokens": generate(llm, prompts(), greedy())}
