"""Scenarios for the draft's side of a step on model runner V2: its cache, its graphs, its weights."""

import sys
from typing import Any

import torch
from recorded_graph import capture_draft_graphs
from scenarios import generate, greedy, make_llm, metric, model_runner, prompts, recorded_steps, spec_counts, speculator
from vllm import SamplingParams
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.attention.backend import CommonAttentionMetadata


def prefix_cache_after_load(target: str, draft: str, spec: dict[str, Any] | None) -> Any:
    """A long prompt read while another request decodes, then asked again alone: counts of the second time."""
    llm = make_llm(target, draft, spec=spec, max_num_batched_tokens=48)
    decode, long_prompt = prompts((5, 120))
    engine = llm.llm_engine
    engine.add_request("decode", decode, greedy(30))
    while not engine.has_unfinished_requests() or metric(llm, "generation_tokens") < 3:
        engine.step()
    engine.add_request("prompt", long_prompt, greedy(2))
    with recorded_steps(llm) as steps:
        while engine.has_unfinished_requests():
            engine.step()
    before, hits_before = spec_counts(llm), metric(llm, "prefix_cache_hits")
    tokens = generate(llm, [long_prompt], greedy(24))
    after = spec_counts(llm)
    counts = {name: after[name] - before[name] for name in ("num_drafts", "num_accepted_tokens")}
    hits = metric(llm, "prefix_cache_hits") - hits_before
    return {"tokens": tokens, "counts": counts, "hits": hits, "steps": steps}


def unfit_graphs(target: str, draft: str, backend: str) -> Any:
    """Greedy drafts on a backend that can't replay them, or can't refresh: eager, and with graphs."""
    import fake_backends

    fake_backends.use(backend)
    requests, params = prompts((2, 33, 40, 9)), [greedy(26), greedy(10), greedy(16), greedy(16)]
    eager = make_llm(target, draft, max_num_seqs=8)
    result = {"eager": generate(eager, requests, params), "eager_counts": spec_counts(eager)}
    llm = make_llm(target, draft, max_num_seqs=8)
    captured = capture_draft_graphs(speculator(llm), [1, 2, 4, 8])
    with recorded_steps(llm) as steps:
        tokens = generate(llm, requests, params)
    result["places"] = [step["places"] for step in steps if step["places"]]
    replays = sum(graph.num_replays for graph in captured.values())
    refreshes = speculator(llm).forward.attention.refreshes
    return result | {"graphs": tokens, "counts": spec_counts(llm), "replays": replays, "refreshes": refreshes}


def planned_graphs(target: str, draft: str, num_drafts: int | str, spec: dict[str, Any]) -> Any:
    """Requests and rows a request of the graphs of whole draft steps, for batches of up to four."""
    llm = make_llm(target, draft, num_drafts=num_drafts, spec=spec, max_num_batched_tokens=256)
    captured = capture_draft_graphs(speculator(llm), [1, 2, 4])
    return sorted([shape.num_reqs, shape.uniform_token_count] for shape in captured)


def pieces(target: str, draft: str) -> Any:
    """Drafts from graphs of decodes, prompts beside them in pieces of up to 64 rows or apart; against eager ones."""
    requests = prompts((2, 33, 70, 40, 9))
    params = [SamplingParams(temperature=0.7, seed=i, max_tokens=6 + 5 * i, ignore_eos=True) for i in range(5)]
    kw = {"spec": {"draft_sample_method": "probabilistic"}, "max_num_batched_tokens": 96}
    eager = make_llm(target, draft, **kw)
    result = {"eager": generate(eager, requests, params), "eager_counts": spec_counts(eager)}
    llm = make_llm(target, draft, **kw)
    capture_draft_graphs(speculator(llm), [1, 2, 4], CUDAGraphMode.FULL_AND_PIECEWISE, (32, 64))
    forwards, model = [], speculator(llm).forward.model
    forward = type(model).forward

    def noting(self: Any, input_ids: torch.Tensor, *args: Any) -> torch.Tensor:
        forwards.append([len(input_ids), args[-1].name])
        return forward(self, input_ids, *args)

    type(model).forward = noting
    with recorded_steps(llm) as steps:
        tokens = generate(llm, requests, params)
    return result | {"graphs": tokens, "counts": spec_counts(llm), "steps": steps, "forwards": forwards}


def flash_schedules(target: str, draft: str) -> Any:
    """FlashAttention 3's schedule, as it was captured for decodes of so many rows and as later builds leave it."""
    from vllm.v1.attention.backends import flash_attn

    llm = make_llm(target, draft, attention_backend="CUSTOM", max_num_batched_tokens=192)
    builder = model_runner(llm).attn_groups[0][0].get_metadata_builder(0)
    platform = builder.platform
    platform.use_full_cuda_graph, platform.scheduler_metadata = True, torch.zeros(17, dtype=torch.int32)
    platform.aot_sliding_window = None
    flash_attn.get_scheduler_metadata = lambda batch_size, cache_seqlens, **_: cache_seqlens.sum().int().repeat(9)

    def common(rows: list[int], cached: list[int]) -> CommonAttentionMetadata:
        starts = torch.tensor([0, *rows]).cumsum(0).int()
        seq_lens = (torch.tensor(rows) + torch.tensor(cached)).int()
        return CommonAttentionMetadata(
            query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=seq_lens, num_reqs=len(rows),
            num_actual_tokens=sum(rows), max_query_len=max(rows), max_seq_len=160, slot_mapping=torch.zeros(sum(rows)),
            block_table_tensor=torch.zeros(len(rows), 5, dtype=torch.int32), seq_lens_cpu_upper_bound=seq_lens,
        )  # fmt: skip

    narrow = builder.build_for_cudagraph_capture(common([9, 9], [0, 0]))
    window_after_narrow = platform.aot_sliding_window
    wide = builder.build_for_cudagraph_capture(common([70, 70], [0, 0]))
    captured = wide.wide.scheduler_metadata[0].item()
    builder.build(0, common([9, 70], [30, 0]))
    builder.build(0, common([70, 70], [50, 20]))
    return {
        "window_after_narrow": window_after_narrow,
        "narrow_is_ours": narrow.wide is None,
        "captured": captured,
        "replayed": wide.wide.scheduler_metadata[0].item(),
    }


def dummy_runs(target: str, draft: str) -> Any:
    """What vLLM asks of the draft when it prices steps: more rows than fit, and decode steps that have a graph."""
    llm = make_llm(target, draft, num_drafts=8, max_num_seqs=32, max_num_batched_tokens=256, max_model_len=128)
    runner, drafting = model_runner(llm), speculator(llm)
    captured = capture_draft_graphs(drafting, [1, 2, 4, 8, 16])
    seen = []
    run, replay = drafting.forward.run, drafting.forward.replay
    drafting.forward.run = lambda step, spans, first: seen.append(int(spans.sum())) or run(step, spans, first)
    drafting.forward.replay = lambda step, shape, stop: seen.append(shape.num_tokens) or replay(step, shape, stop)
    before = drafting.draft_kv.num_tokens.tolist()
    for num_tokens in (9, 36, 232):
        runner._dummy_run(num_tokens)
    return {
        "rows": seen,
        "replays": sum(graph.num_replays for graph in captured.values()),
        "untouched": drafting.draft_kv.num_tokens.tolist() == before,
    }


def reloaded_weights(target: str, draft: str, draft_vocab: str) -> Any:
    """The trimmed head is a copy; a reload of weights takes it again."""
    llm = make_llm(target, draft, spec={"draft_vocab": draft_vocab})
    weight = speculator(llm).head.fused.weight
    wanted = weight.clone()
    weight.zero_()
    llm.collective_rpc("reload_weights")
    return {"same": torch.equal(weight, wanted), "is_copy": bool(wanted.abs().sum() > 0)}


def compilations(target: str, draft: str, spec: dict[str, Any]) -> Any:
    """Variants of our kernels that the start-up has launched, and those that serving launches.

    A row of the block table has 16 entries: what is a multiple of 16 is compiled for otherwise than what is not.
    """
    from triton.runtime.interpreter import GridExecutor

    launch, variants = GridExecutor.__call__, set()

    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.fn.__module__.startswith("pard_kernels"):
            variants.add(f"{self.fn.__name__} {specialisation(self.fn, self.arg_names, args, kwargs)}")
        launch(self, *args, **kwargs)

    GridExecutor.__call__ = noting
    llm = make_llm(target, draft, spec=spec, max_model_len=16 * 32, max_num_seqs=8, max_num_batched_tokens=192)
    started = set(variants)
    requests = prompts((2, 33, 70, 40, 9, 15, 64, 90))
    generate(llm, requests, [greedy(4 + 3 * i) for i in range(8)])
    return {"started": sorted(started), "served": sorted(variants - started)}


def specialisation(function: Any, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What Triton would compile a launch for: constants, and of other arguments whether they are 1 or multiples of 16.

    The latter is left out where a kernel says so.
    """
    kernel = getattr(sys.modules[function.__module__], function.__name__)
    ignored = {*kernel.kwargs.get("do_not_specialize", ()), "FP8_MAX"}
    found = []
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        if name.isupper() and name not in ignored:
            found.append((name, value))
        elif isinstance(value, torch.Tensor):
            found.append((name, str(value.dtype), name in ignored or value.data_ptr() % 16 == 0))
        elif isinstance(value, int) and name not in ignored:
            found.append((name, value == 1, value % 16 == 0))
    return sorted(found)
