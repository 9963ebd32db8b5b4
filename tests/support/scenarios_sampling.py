"""Scenarios of sampling, on either model runner: what a request asks of its tokens holds for drafted ones as well."""

from types import SimpleNamespace
from typing import Any

import torch
from scenarios import generate, make_llm, prompts, spec_counts, speculator
from tiny_models import VOCAB_SIZE
from vllm import SamplingParams
from vllm.lora.request import LoRARequest


def wishes(target: str, draft: str, names_tokens: bool) -> Any:
    """Greedy requests that bias, forbid, allow and score tokens, in one batch, plain and with PARD."""
    if names_tokens:
        _verify_in_chunks(num_rows=12)
    requests = prompts((5, 9, 33, 12, 20, 17, 8, 30, 6))
    kw = {"max_num_seqs": 9, "max_num_batched_tokens": 256}
    plain = make_llm(target, None, **kw)
    unbiased = generate(plain, requests, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    named = {"logprob_token_ids": [5, 77, 200]} if names_tokens else {}
    asked: list[dict[str, Any]] = [
        {"logit_bias": dict.fromkeys(unbiased[0][:8], -100)},
        {"logit_bias": dict.fromkeys(range(40, 60), 4)},
        {},
        {"min_tokens": 12, "stop_token_ids": unbiased[3][:4], "ignore_eos": False},
        {"allowed_token_ids": list(range(30, 60))},
        {"logit_bias": dict.fromkeys(unbiased[5][:8], -100), "frequency_penalty": 1},
        {"logprobs": 3},
        named,
        {"logprobs": 3} | named,
    ]
    params = [SamplingParams(**({"temperature": 0, "max_tokens": 20, "ignore_eos": True} | given)) for given in asked]
    expected = _scored(plain, requests, params)
    llm = make_llm(target, draft, **kw)
    return {"unbiased": unbiased, "plain": expected, "pard": _scored(llm, requests, params), "counts": spec_counts(llm)}


def _verify_in_chunks(num_rows: int) -> None:
    """As V2 does where a step's logits are more than it wants to hold at once."""
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    rejection_sampler.MAX_CHUNK_BYTES = num_rows * VOCAB_SIZE * 4


def _scored(llm: Any, requests: list[Any], params: list[SamplingParams]) -> list[dict[str, Any]]:
    """Tokens of each request, and for each of them the log-probabilities that came with it."""
    outputs = [output.outputs[0] for output in llm.generate(requests, params, use_tqdm=False)]
    return [
        {
            "tokens": list(output.token_ids),
            "logprobs": [
                {str(token): score.logprob for token, score in scores.items()} for scores in output.logprobs or []
            ],
        }
        for output in outputs
    ]


def adapters(target: str, draft: str, folders: list[str]) -> Any:
    """Greedy requests without an adapter and with each of some, mixed in a batch, plain and with PARD."""
    requests = prompts((5, 40, 12, 3, 20, 70))
    loras = [LoRARequest(str(i), i + 1, folder) for i, folder in enumerate(folders)]
    wanted = [None, *loras, None, *loras][: len(requests)]
    params = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    kw = {"enable_lora": True, "max_loras": len(loras), "max_lora_rank": 8, "max_num_seqs": 6}

    def answers(llm: Any) -> list[list[int]]:
        outputs = llm.generate(requests, params, lora_request=wanted, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    plain = make_llm(target, None, **kw)
    unadapted, adapted = generate(plain, requests, params), answers(plain)
    llm = make_llm(target, draft, **kw)
    return {"unadapted": unadapted, "plain": adapted, "pard": answers(llm), "counts": spec_counts(llm)}


def sampling(
    target: str,
    draft: str,
    spec: dict[str, Any],
    num_samples: int,
    prompt: list[int],
    given: dict[str, Any],
    is_seeded: bool,
) -> Any:
    """Draw answers of three tokens."""
    llm = make_llm(target, draft, spec=spec, max_num_seqs=32, max_num_batched_tokens=512)
    params = [
        SamplingParams(max_tokens=3, ignore_eos=True, seed=seed if is_seeded else None, **given)
        for seed in range(num_samples)
    ]
    return {"tokens": generate(llm, [{"prompt_token_ids": prompt}] * num_samples, params), "counts": spec_counts(llm)}


def filtered(target: str, draft: str, filters: list[dict[str, Any]], num_requests: int) -> Any:
    """The same seeded requests, with these filters in turn, drafted within them and then from all tokens."""
    llm = make_llm(target, draft, spec={"draft_sample_method": "probabilistic"}, max_num_seqs=16)
    requests = prompts((7,) * num_requests)
    params = [
        SamplingParams(temperature=0.7, max_tokens=6, ignore_eos=True, seed=seed, **filters[seed % len(filters)])
        for seed in range(num_requests)
    ]
    results, before = [], spec_counts(llm)
    for _ in range(2):
        tokens = generate(llm, requests, params)
        after = spec_counts(llm)
        accepted, drafted = (after[name] - before[name] for name in ("num_accepted_tokens", "num_draft_tokens"))
        results.append({"tokens": tokens, "rate": accepted / drafted})
        speculator(llm).filtered_drafts, before = None, after
    return results


def redrawn(wishes: list[dict[str, Any]], drafts: list[list[float]], target: list[float], num_each: int) -> Any:
    """Of each wish and logits of a draft, one token for each of some requests: drawn again, then verified by vLLM."""
    import vllm.v1.worker.cpu.shm  # noqa: F401  # vLLM's buffers where there is no GPU
    from vllm.v1.worker.gpu.sample.states import SamplingStates
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils import rejection_sample

    from vllm_pard.serving.draft.sampling import FilteredDrafts

    _verify_in_chunks(num_rows=50)
    num_slots = len(wishes) * len(drafts) * num_each
    states, slots = SamplingStates(num_slots, len(target)), torch.arange(num_slots)
    for slot in range(num_slots):
        states.add_request(slot, SamplingParams(seed=slot, **wishes[slot // num_each % len(wishes)]))
    states.apply_staged_writes()
    drafting = SimpleNamespace(
        draft_logits=torch.tensor(drafts).repeat_interleave(len(wishes) * num_each, 0)[:, None],
        draft_tokens=torch.full((num_slots, 1), -7),
        temperature=states.temperature.gpu,
        seeds=states.seeds.gpu,
        request_state=SimpleNamespace(total_len=SimpleNamespace(gpu=torch.full((num_slots,), 10))),
        device=slots.device,
        use_fp64_gumbel=False,
        acceptance_estimator=None,
    )
    apply, lowest = states.apply_top_k_top_p, []

    def recording(logits: torch.Tensor, *args: Any) -> torch.Tensor:
        lowest.append(float(logits[logits > -torch.inf].min()))
        return apply(logits, *args)

    states.apply_top_k_top_p = recording
    FilteredDrafts(drafting, states).redraw(slots.numpy(), 1)
    del states.apply_top_k_top_p
    rows = slots.repeat_interleave(2)  # a draft and a bonus
    logits = torch.tensor(target).repeat(len(rows), 1)
    states.apply_temperature(logits, rows, slots.numpy())
    states.apply_min_p(logits, rows, slots.numpy())
    sampled, num_sampled = rejection_sample(
        apply(logits, rows, slots.numpy()),
        drafting.draft_logits,
        torch.nn.functional.pad(drafting.draft_tokens, (1, 0)).flatten(),
        torch.arange(0, len(rows) + 1, 2),
        torch.tensor([9, 10]).repeat(num_slots),
        slots,
        rows,
        torch.tensor([0, 1]).repeat(num_slots),
        states.temperature.gpu,
        states.seeds.gpu,
        1,
    )

    def of_each(values: torch.Tensor) -> Any:
        return values.view(len(drafts), len(wishes), num_each).tolist()

    drafted, tokens, num = (of_each(values) for values in (drafting.draft_tokens, sampled[:, 0], num_sampled))
    return {"drafts": drafted, "tokens": tokens, "num": num, "lowest": min(lowest)}
