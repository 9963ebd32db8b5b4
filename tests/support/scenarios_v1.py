"""Scenarios for model runner V1, which runs at full CPU speed."""

from typing import Any

from scenarios import compare, generate, greedy, make_llm, model_runner, prompts, spec_counts
from vllm import SamplingParams

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


def kv_cache_groups(target: str, draft: str, prompt_lengths: list[int], max_tokens: int) -> Any:
    """Outputs and drafts of every step where layers have K/V cache groups of their own, and where all share one."""
    requests, params = prompts(tuple(prompt_lengths)), greedy(max_tokens)
    return {
        "plain": generate(make_llm(target, None), requests, params),
        "several": _recorded_drafts(make_llm(target, draft), requests, params),
        "one": _recorded_drafts(make_llm(target, draft, disable_hybrid_kv_cache_manager=True), requests, params),
    }


def _recorded_drafts(llm: Any, requests: Any, params: Any) -> Any:
    runner, drafts = model_runner(llm), []
    propose = runner.drafter.propose

    def recording(*args: Any, **kwargs: Any) -> Any:
        tokens = propose(*args, **kwargs)
        drafts.append(tokens.tolist())
        return tokens

    runner.drafter.propose = recording
    tokens = generate(llm, requests, params)
    return {"num_groups": len(runner.kv_cache_config.kv_cache_groups), "drafts": drafts, "tokens": tokens}


def without_the_package(target: str) -> Any:
    """A plain engine's whole config and its outputs."""
    llm = make_llm(target, None)
    config = llm.llm_engine.vllm_config
    lines = [f"{name}={getattr(config, name)!r}" for name in sorted(vars(config)) if name != "instance_id"]
    return {"config": lines, "hash": config.compute_hash(), "tokens": generate(llm, prompts(), greedy())}


def given_tokens(target: str, draft: str, token_ids: list[int]) -> Any:
    """Log-probabilities of the likeliest tokens, of given tokens and none, in one batch, plain and with drafts."""
    requests = prompts((5, 33, 7))
    wanted = ({"logprobs": 2}, {"logprob_token_ids": token_ids}, {})
    params = [SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, **of_request) for of_request in wanted]
    plain = _log_probabilities(make_llm(target, None), requests, params)
    llm = make_llm(target, draft)
    return {"plain": plain, "pard": _log_probabilities(llm, requests, params), "counts": spec_counts(llm)}


def _log_probabilities(llm: Any, requests: Any, params: Any) -> list[Any]:
    """Of each request, of each of its tokens: log-probabilities by token id."""
    outputs = [output.outputs[0] for output in llm.generate(requests, params, use_tqdm=False)]
    return [[{i: p.logprob for i, p in token.items()} for token in output.logprobs or ()] for output in outputs]


def held_drafts(target: str, draft: str, hold_from: int, hold_to: int) -> Any:
    """Outputs, drafted requests by step and drafts by place where drafts are held back in some steps, and where not."""
    requests, params = prompts((5, 33)), greedy(24)
    plain = generate(make_llm(target, None), requests, params)
    llm = make_llm(target, draft)
    untouched = _by_step(llm, requests, params, {})
    return {"plain": plain, "untouched": untouched, "held": _by_step(llm, requests, params, {hold_from: 1, hold_to: 0})}


def _by_step(llm: Any, requests: Any, params: Any, hold: dict[int, int]) -> Any:
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    drafter, proposed = model_runner(llm).drafter, []
    propose = drafter.propose
    drafter.propose = lambda *args, **kwargs: proposed.append(propose(*args, **kwargs)) or proposed[-1]
    for number, request in enumerate(requests):
        llm.llm_engine.add_request(str(number), llm.renderer.render_cmpl([request])[0], params)
    tokens: list[list[int]] = [[] for _ in requests]
    num_drafted, drafts, seconds = [], {}, [llm.collective_rpc("hold_drafts", args=(False,))[0]]
    while llm.llm_engine.has_unfinished_requests():
        if len(num_drafted) in hold:
            llm.collective_rpc("hold_drafts", args=(bool(hold[len(num_drafted)]),))
        for output in llm.llm_engine.step():
            tokens[int(output.request_id)] = list(output.outputs[0].token_ids)
        num_drafted.append(len(worker.drafted))
        seconds.append(llm.collective_rpc("hold_drafts", args=(worker.holds_drafts,))[0])
        runner = model_runner(llm)
        for name, row in zip(runner.input_batch.req_ids, proposed[-1].tolist(), strict=True):
            drafts[f"{name[0]}: {runner.requests[name].output_token_ids}"] = row
    drafter.propose = propose
    return {"tokens": tokens, "num_drafted": num_drafted, "drafts": drafts, "seconds": seconds}
