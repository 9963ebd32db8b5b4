"""What kernels are compiled for, counted without a GPU: an engine's warm-up, then a sweep over all that it may call.

python tests/support/variant_sweeps.py   -> {sweep: [variants of the warm-up, variants of the sweep]} as JSON
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from chips import CHIPS, launch_variants
from draft_step import Request, StepSizes, decode, step
from pard_kernels import (
    lm_head_top_k,
    merge_top_k,
    prepare_draft_inputs,
    speculative_attention,
    top_k_workspace,
    warm_up_attention,
    warm_up_lm_head_top_k,
    workspace,
)

CHIP = CHIPS[1]
NUM_REQS, MAX_ROWS, MAX_SPLITS = 9, 64, 128
SCALES = {"key_scale": torch.ones(1), "value_scale": torch.ones(1)}
Calls = Iterator[Callable[[], Any]]


def attention_tensors(
    head_size: int, group_size: int, dtype: torch.dtype, cache_dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Of a whole batch: a projection's query, key and value, a paged cache, an output."""
    heads = [2 * group_size, 2, 2]
    qkv = torch.zeros(NUM_REQS * MAX_ROWS, sum(heads), head_size, dtype=dtype).split(heads, 1)
    cache = torch.zeros(4, 2, 16, 2, head_size, dtype=cache_dtype)
    requests = {"block_table": torch.zeros(NUM_REQS, 37), "num_cached": torch.zeros(NUM_REQS)}
    requests["query_start_loc"] = torch.zeros(NUM_REQS + 1)
    return dict(zip(("query", "key", "value"), qkv, strict=True)) | {
        "key_cache": cache[:, 0],
        "value_cache": cache[:, 1],
        **{name: tensor.int() for name, tensor in requests.items()},
    }


def attention(
    head_size: int, group_size: int, dtype: torch.dtype, cache_dtype: torch.dtype | None = None, **options: Any
) -> tuple[Calls, Calls]:
    """Any requests of a batch, in any part of it, of 1 to 64 rows each, with any number of splits."""
    tensors = attention_tensors(head_size, group_size, dtype, cache_dtype or dtype)
    constants = {"scale": 0.1} | options
    masks = constants.pop("ancestor_masks", None)
    warm_up = partial(
        warm_up_attention,
        **tensors,
        max_num_rows=MAX_ROWS,
        max_num_splits=MAX_SPLITS,
        ancestor_masks=masks,
        **constants,
    )

    def sweep() -> Calls:
        for num_rows in range(1, MAX_ROWS + 1):
            for num_splits in (1, 2, 5, 16, 17, 33, 64, 65, 128):
                first = num_rows * num_splits % NUM_REQS
                last = first + 1 + num_splits % (NUM_REQS - first)
                rows, requests = slice(first * num_rows, last * num_rows), slice(first, last)
                of_rows = {name: tensors[name][rows] for name in ("query", "key", "value")}
                of_requests = {name: tensors[name][requests] for name in ("block_table", "num_cached")}
                of_requests["query_start_loc"] = tensors["query_start_loc"][first : last + 1]
                out = torch.empty(tensors["query"].shape, dtype=dtype)[rows]
                scales = dict.fromkeys(constants.keys() & SCALES.keys(), torch.ones(4)[num_rows % 4 :][:1])
                yield partial(
                    speculative_attention, **tensors | of_rows | of_requests | constants | scales, out=out,
                    max_num_rows=num_rows, num_splits=num_splits,
                    ancestor_masks=None if masks is None else masks[rows],
                    partial=workspace(num_splits, len(out), *out.shape[1:], "cpu"),
                )  # fmt: skip

    return iter([warm_up]), sweep()


def head(k: int, dtype: torch.dtype) -> tuple[Calls, Calls]:
    """1 to 300 hidden states over one shard of a vocabulary."""
    weight, constants = torch.zeros(700, 96, dtype=dtype), {"k": k, "scale": 0.5}
    constants["workspace"] = top_k_workspace(num_rows=300, k=k, device="cpu", num_splits=4)
    warm_up = partial(warm_up_lm_head_top_k, weight, dtype=dtype, max_num_rows=300, **constants)
    states = torch.zeros(300, 96, dtype=dtype)
    return iter([warm_up]), (partial(lm_head_top_k, states[:n], weight, **constants) for n in range(1, 301))


def ranks() -> tuple[Calls, Calls]:
    """What two ranks have found for 1 to 300 rows, as one message brings it."""

    def merge(num_rows: int) -> None:
        message = torch.zeros(2, 3, num_rows)
        ids, logits, log_sum_exps = message.unbind(1)
        merge_top_k(ids.contiguous().view(torch.int32)[..., None], logits[..., None], log_sum_exps)

    return iter([partial(merge, 8)]), (partial(merge, n) for n in range(1, 301))


def layout(block_sizes: tuple[int, ...], is_tree: bool) -> tuple[Calls, Calls]:
    """Any K, any number of rows, any part of a batch, masks with slots and without."""
    sizes = StepSizes(num_slots=48, max_model_len=400, max_blocks=50, block_sizes=block_sizes)
    kept = [0] if is_tree else None
    keep_cache = step([decode(0, 1, 0)], 1, sizes, "cpu")

    def lay_out(num_reqs: int, num_drafts: int, first: int, caches_masks: bool) -> None:
        requests = [
            Request(i, 9, num_drafts + 1, 0, 2 * num_drafts + i % 3, 10, kept_rows=kept) for i in range(num_reqs)
        ]
        arguments = step(requests, num_drafts, sizes, "cpu", caches_masks=caches_masks)
        for name in ("block_tables", "num_blocks", "num_draft_kv", "last_sampled", "all_token_ids"):
            arguments[name] = keep_cache[name]
        for name in ("request_slots", "num_sampled", "num_rejected", "seq_lens", "sample_rows"):
            arguments[name] = arguments[name][first:]
        for name in ("target_query_start_loc", "query_start_loc"):
            arguments[name] = arguments[name][first:]
        for name in ("input_ids", "positions", "slot_mappings"):
            arguments[name] = arguments[name][..., first:]
        prepare_draft_inputs(**arguments)

    def sweep() -> Calls:
        for num_reqs in (1, 2, 7, 16, 40):
            for num_drafts in (0, 1, 2, 8, 13, 16):
                for first in {0, 1, num_reqs // 2} - {num_reqs}:
                    yield partial(lay_out, num_reqs, num_drafts, first, bool(first))

    return iter([partial(lay_out, 2, 4, 0, True)]), sweep()


SWEEPS: dict[str, Callable[[], tuple[Calls, Calls]]] = {
    "attention, bfloat16": partial(attention, 64, 4, torch.bfloat16),
    "attention, float32, no groups": partial(attention, 80, 1, torch.float32),
    "attention, wide heads, window": partial(attention, 256, 2, torch.float16, window=200, soft_cap=30.0),
    "attention, FP8 cache": partial(attention, 128, 4, torch.bfloat16, cache_dtype=torch.float8_e4m3fn, **SCALES),
    "attention, trees": partial(
        attention, 128, 8, torch.bfloat16, ancestor_masks=torch.zeros(NUM_REQS * MAX_ROWS, dtype=torch.int64)
    ),
    "lm_head, best": partial(head, 1, torch.bfloat16),
    "lm_head, best four": partial(head, 4, torch.float16),
    "ranks": ranks,
    "layout": partial(layout, (16,), False),
    "layout, trees, two groups": partial(layout, (16, 8), True),
    "layout, no cache": partial(layout, (), False),
}


def variants(calls: Calls) -> list[str]:
    """In the order in which they would be compiled."""
    return list(dict.fromkeys(variant for call in calls for variant in launch_variants(CHIP, lambda _, c=call: c())))


if __name__ == "__main__":
    print(json.dumps({name: [variants(calls) for calls in sweep()] for name, sweep in SWEEPS.items()}))
