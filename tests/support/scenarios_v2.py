"""Scenarios for model runner V2, each of which shows that the engine feature it is named for happened."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from recorded_graph import capture_draft_graphs
from scenarios import (
    generate,
    greedy,
    make_llm,
    metric,
    prompts,
    recorded_steps,
    spec_counts,
    speculator,
)
from vllm import LLM, SamplingParams

from vllm_pard.serving.draft.kv import StepRequests


def mixed_batches(target: str, draft: str, num_drafts: int, asynchronous: bool) -> Any:
    """Twelve prompts of 1 to 90 tokens and answers of 5 to 27, chunked to 48 tokens a step: requests join and leave."""
    requests = prompts()
    params = [greedy(5 + 2 * i) for i in range(len(requests))]
    kw = {"max_num_batched_tokens": 48}
    plain = generate(make_llm(target, None, **kw), requests, params)
    llm = make_llm(target, draft, num_drafts=num_drafts, async_scheduling=asynchronous, **kw)
    with recorded_steps(llm) as steps:
        pard = generate(llm, requests, params)
    result = {"plain": plain, "pard": pard, "counts": spec_counts(llm), "steps": steps}
    return result | {"steps_in_flight": llm.llm_engine.engine_core.engine_core.batch_queue_size}


def own_attention(target: str, draft: str, num_drafts: int, num_splits: int, in_target: bool) -> Any:
    """Our attention in the draft, or in both models, against the platform's in both and against plain decoding."""
    requests = prompts((2, 33, 70))
    params = [greedy(18), greedy(10), greedy(6)]
    kw = {"max_num_batched_tokens": 192}
    plain = generate(make_llm(target, None, **kw), requests, params)
    upstream = make_llm(target, draft, num_drafts=num_drafts, **kw)
    result = {
        "plain": plain,
        "upstream": generate(upstream, requests, params),
        "upstream_counts": spec_counts(upstream),
    }
    ours = {"attention_backend": "CUSTOM"}
    kw |= ours if in_target else {"spec": ours}
    llm = make_llm(target, draft, num_drafts=num_drafts, **kw)
    with recorded_steps(llm) as steps, recorded_attention(num_splits) as calls:
        pard = generate(llm, requests, params)
    return result | {"pard": pard, "counts": spec_counts(llm), "steps": steps, "calls": calls}


@contextmanager
def recorded_attention(num_splits: int) -> Iterator[list[int]]:
    """The rows of each call of our kernel, which is made to split the prefix."""
    from vllm_pard.serving.attention import layer, metadata

    kernel, choose, calls = layer.speculative_attention, metadata.choose_num_splits, []

    def recording(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(len(query))
        assert kwargs["num_splits"] == num_splits
        return kernel(query, *args, **kwargs)

    layer.speculative_attention, metadata.choose_num_splits = recording, lambda **_: num_splits
    yield calls
    layer.speculative_attention, metadata.choose_num_splits = kernel, choose


def graphs(
    target: str, draft: str, num_drafts: int, spec: dict[str, Any], temperature: float, most: int = 4, chunk: int = 0
) -> Any:
    """Draft steps replayed from graphs, which were captured before the first request, against eager ones.

    `most`: requests at a time, and of the largest graph, at least 4. `chunk`: tokens of a prompt in a step, or any.
    """
    requests = prompts((2, 33, 70, 40, 9))
    params = [
        SamplingParams(
            temperature=temperature, top_p=(1, 0.8)[seed % 2], seed=seed, max_tokens=max_tokens, ignore_eos=True
        )
        for seed, max_tokens in enumerate((36, 10, 6, 21, 16))
    ]
    kw = {"num_drafts": num_drafts, "spec": spec, "max_num_batched_tokens": max(96, 8 * most), "max_num_seqs": most}
    kw |= {"long_prefill_token_threshold": chunk}
    eager = make_llm(target, draft, **kw)
    with recorded_logits(eager) as eager_logits:
        result = {"eager": generate(eager, requests, params), "eager_counts": spec_counts(eager)}
    llm = make_llm(target, draft, **kw)
    captured = capture_draft_graphs(speculator(llm), sorted({1, 2, 4, most}))
    with recorded_steps(llm) as steps, recorded_logits(llm) as logits:
        tokens = generate(llm, requests, params)
    replays = {f"{shape.num_reqs} x {shape.uniform_token_count}": g.num_replays for shape, g in captured.items()}
    pairs = zip(logits, eager_logits, strict=True)
    differences = [float((mine - theirs).abs().max()) for mine, theirs in pairs if len(mine) > 0]
    found = {"graphs": tokens, "counts": spec_counts(llm), "steps": steps, "replays": replays}
    return result | found | {"differences": differences}


@contextmanager
def recorded_logits(llm: LLM) -> Iterator[list[torch.Tensor]]:
    """Of each step that drafts, those of the requests that sample; only of drafts that are sampled themselves."""
    drafting, logits = speculator(llm), []
    draft = drafting._draft

    def recording(step: Any) -> None:
        draft(step)
        if drafting.draft_logits is not None and step.num_drafts > 0:
            will_sample = torch.from_numpy(StepRequests.of(step.batch, 1 + drafting.depth).will_sample)
            logits.append(drafting.draft_logits[step.slots[will_sample], : step.num_drafts].clone())

    drafting._draft = recording
    yield logits
    drafting._draft = draft


def adaptive(target: str, draft: str, num_drafts: int) -> Any:
    """The speculator's side of adaptive verification: confidences of drafts, and the target's verdicts on them."""
    from vllm_pard.serving.speculator import PardSpeculator

    requests, params = prompts((2, 33, 70)), [greedy(40), greedy(30), greedy(20)]
    plain = generate(make_llm(target, None), requests, params)
    init = PardSpeculator.__init__

    def with_estimator(self: PardSpeculator, *args: Any) -> None:
        init(self, *args)
        self.use_acceptance_estimator = True  # the option asks for CUDA graphs

    PardSpeculator.__init__ = with_estimator
    llm = make_llm(target, draft, num_drafts=num_drafts)
    estimator = speculator(llm).acceptance_estimator
    pard = generate(llm, requests, params)
    return {
        "plain": plain,
        "pard": pard,
        "counts": spec_counts(llm),
        "graded": estimator.counts.tolist(),
        "features": estimator.features[:3].tolist(),
        "confidences": speculator(llm).draft_token_confidence_probs[:3].tolist(),
    }


def preemption(target: str, draft: str) -> Any:
    """Four requests that outgrow six K/V blocks."""
    requests, params = prompts((40, 41, 42, 43)), greedy(40)
    kw = {"num_gpu_blocks_override": 9, "max_num_batched_tokens": 128}
    plain = generate(make_llm(target, None, max_num_batched_tokens=128), requests, params)
    llm = make_llm(target, draft, **kw)
    pard = generate(llm, requests, params)
    return {"plain": plain, "pard": pard, "preemptions": metric(llm, "num_preemptions"), "counts": spec_counts(llm)}


def prefix_cache(target: str, draft: str) -> Any:
    """The same long prompts twice."""
    requests, params = prompts((70, 100)), greedy(20)
    plain = generate(make_llm(target, None, enable_prefix_caching=False), requests, params)
    llm = make_llm(target, draft, enable_prefix_caching=True)
    first, first_counts = generate(llm, requests, params), spec_counts(llm)
    hits_before = metric(llm, "prefix_cache_hits")
    second, both_counts = generate(llm, requests, params), spec_counts(llm)
    return {
        "plain": plain,
        "first": first,
        "second": second,
        "hits": metric(llm, "prefix_cache_hits") - hits_before,
        "first_counts": first_counts,
        "both_counts": both_counts,
    }


def aborts(target: str, draft: str) -> Any:
    """Half of the requests are aborted in mid-answer; others take their slots."""
    requests = prompts()
    plain = generate(make_llm(target, None), requests, greedy(16))
    llm = make_llm(target, draft)
    engine, outputs, aborted = llm.llm_engine, {}, []
    for i, request in enumerate(requests):
        engine.add_request(str(i), request, greedy(16))
    while engine.has_unfinished_requests():
        for output in engine.step():
            tokens = list(output.outputs[0].token_ids)
            index = int(output.request_id.split("-")[0])
            if index % 2 and 2 <= len(tokens) < 14 and index not in aborted:
                aborted.append(index)
                engine.abort_request([output.request_id])
            elif output.finished and index not in aborted:
                outputs[index] = tokens
    return {"plain": plain, "pard": outputs, "aborted": aborted}


def max_model_len(target: str, draft: str, num_drafts: int) -> Any:
    """Answers that end at the context's end, with more draft tokens than are left."""
    requests, params = prompts((1, 30, 58)), greedy(200)
    kw = {"max_model_len": 64, "max_num_batched_tokens": 96}
    plain = generate(make_llm(target, None, **kw), requests, params)
    llm = make_llm(target, draft, num_drafts=num_drafts, **kw)
    with recorded_steps(llm) as steps:
        pard = generate(llm, requests, params)
    return {"plain": plain, "pard": pard, "steps": steps}


DYNAMIC_K = {"num_speculative_tokens_per_batch_size": [[1, 1, 4], [2, 2, 2], [3, 8, 0]]}


def dynamic_num_drafts(target: str, draft: str) -> Any:
    """K is 4 alone, 2 for two requests, 0 above: steps without drafts leave a backlog that later steps catch up."""
    requests = prompts((90, 33, 5))
    params = [greedy(40), greedy(14), greedy(6)]
    plain = generate(make_llm(target, None), requests, params)
    llm = make_llm(target, draft, spec=DYNAMIC_K)
    with recorded_steps(llm) as steps:
        pard = generate(llm, requests, params)
    return {"plain": plain, "pard": pard, "counts": spec_counts(llm), "steps": steps}


def draft_kv(
    target: str, draft: str, disable_counter: bool, spec: dict[str, Any] | None = None, joins_graphs: int = 0
) -> Any:
    """Largest difference between the draft's K/V after drafting and after a fresh prefill of the same text.

    Compares whole blocks of the first request. Others share the batch, so that with `DYNAMIC_K` some steps do not
    draft. With the counter disabled the speculator believes that the draft has whatever the target has. If it joins
    graphs, for so many requests, its prompt is read in a step in which the drafts of three others come from one.
    """
    requests = prompts((20, 21, 22, 23) if joins_graphs else (20, 21, 22))
    params = [greedy(110), greedy(40), greedy(30), greedy(30)][: len(requests)]
    llm = make_llm(target, draft, spec=spec, enable_prefix_caching=False, max_num_seqs=max(4, joins_graphs))
    drafting = speculator(llm)
    if joins_graphs:
        capture_draft_graphs(drafting, [1, joins_graphs])
    if disable_counter:
        lay_out = drafting.rows.lay_out

        def without_counter(*args: Any, **kwargs: Any) -> None:
            drafting.draft_kv.num_tokens.fill_(torch.iinfo(torch.int32).max)
            lay_out(*args, **kwargs)

        drafting.rows.lay_out = without_counter
    with recorded_steps(llm) as steps:
        blocks, text = _first_request_blocks(llm, requests, params, joins_late=joins_graphs > 0)
    fresh = make_llm(target, draft, enable_prefix_caching=False)
    fresh_blocks, _ = _first_request_blocks(fresh, [{"prompt_token_ids": text}], [greedy(2)])
    num_blocks = (len(text) - 1) // 32
    differences = [float((a - b).abs().max()) for a, b in zip(blocks[:num_blocks], fresh_blocks, strict=False)]
    return {"differences": differences, "rejected": sum(step["rejected"] for step in steps), "steps": steps}


def _first_request_blocks(
    llm: LLM, requests: list[Any], params: list[SamplingParams], joins_late: bool = False
) -> tuple[list[Any], list[int]]:
    """Run all requests; return the draft's K/V blocks and the tokens of the first, read just before it finishes."""
    engine, drafting = llm.llm_engine, speculator(llm)
    for i, request in reversed(list(enumerate(requests))):
        if i == 0 and joins_late:
            for _ in range(4):
                engine.step()
        engine.add_request(str(i), request, params[i])
    tables, group = drafting.block_tables, drafting.forward.attention.kv_groups[0]
    context = drafting.vllm_config.compilation_config.static_forward_context
    layers = [context[name].kv_cache for name in sorted(drafting.draft_attn_layer_names)]
    state, blocks, text = drafting.request_state, [], []
    while engine.has_unfinished_requests():
        engine.step()
        slot = next((i for name, i in state.req_id_to_index.items() if name.split("-")[0] == "0"), None)
        if slot is None:
            break
        num_blocks = int(tables.num_blocks.np[group, slot])
        ids = tables.block_tables[group].gpu[slot, :num_blocks].long()
        blocks = [torch.stack([layer[block] for layer in layers]).float().clone() for block in ids.tolist()]
        total = int(state.total_len.gpu[slot])
        text = state.all_token_ids.gpu[slot, :total].tolist()
    for _ in range(1000):
        if not engine.has_unfinished_requests():
            break
        engine.step()
    return blocks, text
