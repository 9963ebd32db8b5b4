"""Scenarios that tests run in engine processes (see engine.py), on either model runner."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from engine import ENGINE
from vllm import LLM, SamplingParams, TokensPrompt

LENGTHS = (1, 2, 3, 7, 15, 31, 32, 33, 50, 64, 75, 90)


def make_llm(
    target: str, draft: str | None, *, num_drafts: int | str = 4, spec: dict[str, Any] | None = None, **kw: Any
) -> LLM:
    options = ENGINE | {"max_model_len": 160, "max_num_seqs": 4, "max_num_batched_tokens": 64} | kw
    if draft is not None:
        config = {"method": "pard", "model": draft, "num_speculative_tokens": num_drafts} | (spec or {})
        options["speculative_config"] = config
    return LLM(target, **options)


def prompts(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[TokensPrompt]:
    generator = torch.Generator().manual_seed(seed)
    return [
        TokensPrompt(prompt_token_ids=torch.randint(0, 256, (length,), generator=generator).tolist())
        for length in lengths
    ]


def greedy(max_tokens: int = 20) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


def generate(llm: LLM, requests: list[Any], params: Any) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(requests, params, use_tqdm=False)]


def metric(llm: LLM, name: str) -> Any:
    found = [m for m in llm.get_metrics() if m.name == f"vllm:{name}"]
    return getattr(found[0], "value", None) if hasattr(found[0], "value") else found[0].values


def spec_counts(llm: LLM) -> dict[str, Any]:
    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos")
    return {name: metric(llm, f"spec_decode_{name}") for name in names}


def model_runner(llm: LLM) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def speculator(llm: LLM) -> Any:
    return model_runner(llm).speculator


@contextmanager
def recorded_steps(llm: LLM) -> Iterator[list[dict[str, Any]]]:
    """What each step of the V2 speculator was: requests, prefills, unfinished prefill chunks, K, forwards, replays."""
    drafting, steps = speculator(llm), []
    run, replay, sample = drafting.forward.run, drafting.forward.replay, drafting._sample
    draft, replay_places = drafting._draft, drafting.forward.replay_places

    def recording(step: Any) -> None:
        batch = step.batch
        reached = batch.num_computed_prefill_tokens_np + batch.num_scheduled_tokens
        steps.append(
            {
                "requests": batch.num_reqs,
                "prefills": int(batch.is_prefilling_np.sum()),
                "chunks": int((reached < batch.prefill_len_np).sum()),
                "num_drafts": step.num_drafts,
                "queries": batch.num_scheduled_tokens.tolist(),
                "rejected": int(step.num_rejected.sum()),
                "rows": [],
                "replays": [],
                "places": [],
                "sampled": 0,
            }
        )
        draft(step)

    def counting(step: Any, spans: Any, first: int) -> torch.Tensor:
        hidden_states = run(step, spans, first)
        if steps:
            num_rows = int(spans.sum())
            steps[-1]["rows"].append(spans.tolist())
            steps[-1]["cached_rows"] = int((drafting.rows.slot_mappings[:, :num_rows] >= 0).sum())
        return hidden_states

    def counting_replays(step: Any, shape: Any, num_decodes: int) -> None:
        replay(step, shape, num_decodes)
        if steps:
            steps[-1]["replays"].append(shape.num_reqs)

    def counting_places(step: Any, shape: Any, places: Any, first: int) -> None:
        replay_places(step, shape, places, first)
        steps[-1]["replays"].append(shape.num_reqs)
        steps[-1]["places"] = np.bincount(places.host_owners)[: step.batch.num_reqs - first].tolist()

    def counting_samples(*args: Any) -> None:
        steps[-1]["sampled"] += int(args[-1].sum())
        sample(*args)

    drafting._draft, drafting._sample = recording, counting_samples
    drafting.forward.run, drafting.forward.replay = counting, counting_replays
    drafting.forward.replay_places = counting_places
    yield steps
    del drafting._draft, drafting._sample
    del drafting.forward.run, drafting.forward.replay, drafting.forward.replay_places


def compare(
    target: str,
    draft: str,
    num_drafts: int,
    prompt_lengths: list[int],
    max_tokens: int,
    spec: dict[str, Any] | None = None,
) -> Any:
    """Plain and PARD outputs of the same prompts, with PARD's counts."""
    plain = generate(make_llm(target, None), prompts(tuple(prompt_lengths)), greedy(max_tokens))
    return {"plain": plain} | draft_only(target, draft, num_drafts, prompt_lengths, max_tokens, spec)


def draft_only(
    target: str,
    draft: str,
    num_drafts: int,
    prompt_lengths: list[int],
    max_tokens: int,
    spec: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> Any:
    """PARD's outputs and counts; `options` are the engine's."""
    llm = make_llm(target, draft, num_drafts=num_drafts, spec=spec, **(options or {}))
    pard = generate(llm, prompts(tuple(prompt_lengths)), greedy(max_tokens))
    return {"pard": pard, "counts": spec_counts(llm)}


def told(
    target: str,
    draft: str,
    max_tokens: int,
    num_rounds: int = 1,
    limits: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """What the engine logs of PARD while full batches are answered; `limits` are its watch's."""
    from vllm_pard.serving.watch import AcceptanceWatch, WatchLimits

    records: list[logging.LogRecord] = []
    # A filter, since vLLM takes the handlers of its loggers away when it starts.
    logging.getLogger("vllm.vllm_pard").addFilter(lambda record: records.append(record) or True)
    llm = make_llm(target, draft, **options)
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    if limits is not None:
        worker.watch = AcceptanceWatch(worker._warn_of_low_acceptance, WatchLimits(**limits))
    lengths = (5, 17, 40, 64) * (llm.llm_engine.vllm_config.scheduler_config.max_num_seqs // 4)
    for seed in range(num_rounds):
        generate(llm, prompts(lengths, seed), greedy(max_tokens))
    return {
        "messages": [[record.levelname, record.getMessage()] for record in records],
        "counts": spec_counts(llm),
        "watched": [worker.watch._counts.num_drafts, worker.watch._counts.num_accepted_tokens],
        "seconds_of_drafting": llm.collective_rpc("hold_drafts", args=(False,))[0],
    }


def trimmed(target: str, draft: str, spec: dict[str, Any], use_int8: bool = False) -> Any:
    """Plain and PARD outputs, every token that was drafted, and on V2 those of all texts."""
    requests, params = prompts((2, 9, 33)), greedy(14)
    plain = generate(make_llm(target, None), requests, params)
    if use_int8:
        from vllm_pard.serving.draft import loading

        choose = loading.choose_head
        loading.choose_head = lambda *args, **kwargs: choose(*args, **(kwargs | {"use_int8": True}))
    llm = make_llm(target, draft, spec=spec)
    runner = model_runner(llm)
    drafting = getattr(runner, "speculator", None) or runner.drafter
    drafted, propose = set(), drafting.propose

    def recording(*args: Any, **kwargs: Any) -> torch.Tensor:
        tokens = propose(*args, **kwargs)
        drafted.update(tokens.flatten().tolist())
        return tokens

    drafting.propose = recording
    pard = generate(llm, requests, params)
    if use_int8:
        assert drafting.head.fused.weight.dtype == torch.int8
    state = getattr(drafting, "request_state", None)
    known = [] if state is None else state.all_token_ids.gpu.unique().tolist()
    return {"plain": plain, "pard": pard, "drafted": sorted(drafted), "known": known, "counts": spec_counts(llm)}


def changing_lengths(target: str, draft: str, lengths: list[int], num_steps: int) -> Any:
    """The scheduler chooses these lengths in turn, each for so many steps."""
    from vllm_pard.choice import LengthChoice

    requests = prompts((1, 30, 58, 9, 40, 17, 70, 25))
    params = [greedy(10 + 4 * i) for i in range(len(requests))]
    kw = {"max_num_batched_tokens": 192}
    plain = generate(make_llm(target, None, **kw), requests, params)
    chosen: list[int] = []

    def in_turn(self: LengthChoice, batch_size: int) -> int:
        chosen.append(lengths[len(chosen) // num_steps % len(lengths)])
        return chosen[-1]

    LengthChoice.choose = in_turn  # type: ignore[method-assign]
    llm = make_llm(target, draft, num_drafts="auto", **kw)
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    update, verified = scheduler.update_from_output, []

    def recording(scheduler_output: Any, model_runner_output: Any) -> Any:
        drafts = scheduler_output.scheduled_spec_decode_tokens
        verified.append(sorted({len(drafts.get(name, ())) for name in scheduler_output.num_scheduled_tokens}))
        return update(scheduler_output, model_runner_output)

    scheduler.update_from_output = recording
    pard = generate(llm, requests, params)
    costs = {
        size: {k: len(seen) for k, seen in batch.steps.items()} for size, batch in scheduler.choice._batches.items()
    }
    return {"plain": plain, "pard": pard, "verified": verified, "costs": costs, "counts": spec_counts(llm)}
