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
    CacheLayout,
    DraftTree,
    History,
    accept_tree_path,
    add_target_features,
    build_draft_tree,
    compact_tree_kv,
    keep_tree_rows,
    lm_head_top_k,
    merge_top_k,
    place_tree_rows,
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


def layout(block_sizes: tuple[int, ...], is_tree: bool, reads_target: bool = False) -> tuple[Calls, Calls]:
    """Any K, any number of rows, any part of a batch, masks with slots and without."""
    sizes = StepSizes(num_slots=48, max_model_len=400, max_blocks=50, block_sizes=block_sizes)
    kept = [0] if is_tree else None
    keep_cache, keep_features = step([decode(0, 1, 0)], 1, sizes, "cpu"), torch.zeros(48, dtype=torch.int32)

    def lay_out(num_reqs: int, num_drafts: int, first: int, caches_masks: bool) -> None:
        requests = [
            Request(i, 9, num_drafts + 1, 0, 2 * num_drafts + i % 3, 10, kept_rows=kept) for i in range(num_reqs)
        ]
        arguments = step(requests, num_drafts, sizes, "cpu", caches_masks=caches_masks, reads_target=reads_target)
        for name in ("block_tables", "num_blocks", "num_draft_kv", "last_sampled", "all_token_ids"):
            arguments[name] = keep_cache[name]
        for name in ("request_slots", "num_sampled", "num_rejected", "seq_lens", "sample_rows"):
            arguments[name] = arguments[name][first:]
        for name in ("target_query_start_loc", "query_start_loc"):
            arguments[name] = arguments[name][first:]
        for name in ("input_ids", "positions", "slot_mappings"):
            arguments[name] = arguments[name][..., first:]
        if reads_target:
            features = arguments["features"]
            arguments["features"] = features._replace(num_carried=keep_features, first_carried=512)
        prepare_draft_inputs(**arguments)

    def sweep() -> Calls:
        for num_reqs in (1, 2, 7, 16, 40):
            for num_drafts in (0, 1, 2, 8, 13, 16):
                for first in {0, 1, num_reqs // 2} - {num_reqs}:
                    yield partial(lay_out, num_reqs, num_drafts, first, bool(first))

    return iter([partial(lay_out, 2, 4, 0, True)]), sweep()


def target_features() -> tuple[Calls, Calls]:
    """1 to 40 requests of any number of rows."""
    features, inputs_embeds = torch.zeros(600, 96), torch.zeros(600, 96)
    feature_rows, carries = torch.zeros(600, dtype=torch.int32), torch.zeros(40, 2, dtype=torch.int32)

    def add(num_reqs: int, num_rows: int) -> None:
        add_target_features(
            embeddings=torch.zeros(num_rows, 96),
            features=features,
            feature_rows=feature_rows[:num_rows],
            carries=carries[:num_reqs],
            query_start_loc=torch.zeros(num_reqs + 1, dtype=torch.int32),
            inputs_embeds=inputs_embeds,
        )

    return iter([partial(add, 1, 8)]), (
        partial(add, num_reqs, rows) for num_reqs in range(1, 41) for rows in (1, 7, 512)
    )


def trees(*numbers_of_nodes: int) -> tuple[Calls, Calls]:
    """Any K, number of candidates and some of nodes, any part of a batch, with a history or without."""
    lengths = torch.zeros(40, dtype=torch.int32)

    def build(first: int, num_reqs: int, num_drafts: int, num_candidates: int, num_nodes: int) -> None:
        part, logprobs = slice(first, first + num_reqs), torch.zeros(40, num_drafts, num_candidates)
        of_slots = DraftTree.empty(40, num_nodes, "cpu")
        out = of_slots._replace(token_ids=of_slots.token_ids[part], logprobs=of_slots.logprobs[part])
        build_draft_tree(
            candidate_ids=logprobs.long()[part],
            candidate_logprobs=logprobs[part],
            num_nodes=num_nodes,
            history=None if num_reqs == 1 else History(torch.zeros(40, 7 + num_nodes, dtype=torch.int32), lengths),
            out=out,
            request_slots=torch.arange(40)[part],
        )

    def sweep() -> Calls:
        for first, num_reqs in ((0, 1), (1, 1), (0, 16), (3, 37)):
            for num_drafts, num_candidates in ((2, 32), (3, 4), (16, 16), (63, 1)):
                for num_nodes in numbers_of_nodes:
                    yield partial(build, first, num_reqs, num_drafts, num_candidates, num_nodes)

    return iter([partial(build, 0, 8, 8, 8, numbers_of_nodes[0])]), sweep()


def tree_path() -> tuple[Calls, Calls]:
    """1 to 40 requests, any part of a batch, of 1 to 32 rows each."""
    parents, starts = torch.zeros(40, 32, dtype=torch.int32), torch.zeros(41, dtype=torch.int32)
    token_ids, accepted_rows = torch.zeros(40, 13, dtype=torch.int64), torch.zeros(40, 13, dtype=torch.int32)
    targets, drafts = torch.zeros(40 * 32, dtype=torch.int64), torch.zeros(42 * 32, dtype=torch.int32)

    def accept(num_reqs: int, first: int, num_rows: int) -> None:
        accept_tree_path(
            target_token_ids=targets[: num_reqs * num_rows],
            draft_token_ids=drafts[first:][: num_reqs * num_rows],
            row_starts=starts[first : num_reqs + 1],
            parents=parents,
            is_chain_only=torch.zeros(40, dtype=torch.bool),
            request_slots=starts[first:num_reqs],
            token_ids=token_ids[first:],
            accepted_rows=accepted_rows,
            num_sampled=starts[first:num_reqs],
        )

    return iter([partial(accept, 1, 0, 8)]), (
        partial(accept, n, first, rows) for n in range(1, 41) for first in {0, 1, n // 2} - {n} for rows in (1, 7, 31)
    )


def tree_rows() -> tuple[Calls, Calls]:
    """Rows placed, put back and kept: of 1 to 40 requests, any part of a batch."""
    depths, ancestors = torch.zeros(40, 32, dtype=torch.int32), torch.zeros(40, 32, dtype=torch.int64)
    rows, starts = torch.zeros(600, dtype=torch.int64), torch.zeros(41, dtype=torch.int32)

    def place_and_keep(num_reqs: int, first: int, sign: int, writes_masks: bool) -> None:
        row_starts, slots = starts[first : num_reqs + 1], rows[first:num_reqs]
        place_tree_rows(
            positions=rows,
            row_masks=rows if writes_masks else None,
            row_starts=row_starts,
            logit_starts=row_starts,
            request_slots=slots,
            depths=depths,
            ancestors=ancestors,
            sign=sign,
        )
        keep_tree_rows(
            kept_rows=rows.int(),
            row_starts=row_starts,
            logit_starts=row_starts,
            request_slots=slots,
            accepted_rows=depths,
            num_sampled=starts[first:num_reqs],
        )

    return iter([partial(place_and_keep, 1, 0, 1, False)]), (
        partial(place_and_keep, n, first, *how)
        for n in range(1, 41)
        for first in {0, 1, n // 2} - {n}
        for how in ((1, True), (-1, False))
    )


def tree_kv(head_size: int) -> tuple[Calls, Calls]:
    """1 to 40 requests, any part of a batch."""
    layout = CacheLayout.of(torch.zeros(2, 4, 16, 3, head_size, dtype=torch.bfloat16))
    addresses, table = torch.zeros(5, dtype=torch.int64), torch.zeros(40, 37, dtype=torch.int32)
    accepted_rows, of_requests = torch.zeros(40, 13, dtype=torch.int32), torch.zeros(40, dtype=torch.int32)

    def compact(num_reqs: int, first: int) -> None:
        compact_tree_kv(
            cache_addresses=addresses,
            layout=layout,
            block_table=table,
            block_size=16,
            request_slots=of_requests[first:num_reqs],
            num_computed=of_requests,
            accepted_rows=accepted_rows,
            num_sampled=of_requests[first:num_reqs],
        )

    return iter([partial(compact, 1, 0)]), (
        partial(compact, n, first) for n in range(1, 41) for first in {0, 1, n // 2} - {n}
    )


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
    "layout, features": partial(layout, (16,), False, reads_target=True),
    "features": target_features,
    "trees": partial(trees, 32, 1, 2, 16, 31),
    "trees, many nodes": partial(trees, 33, 42, 63),
    "tree path": tree_path,
    "tree rows": tree_rows,
    "tree K/V": partial(tree_kv, 128),
    "tree K/V, odd heads": partial(tree_kv, 3),
}


def variants(calls: Calls) -> list[str]:
    """In the order in which they would be compiled."""
    return list(dict.fromkeys(variant for call in calls for variant in launch_variants(CHIP, lambda _, c=call: c())))


if __name__ == "__main__":
    print(json.dumps({name: [variants(calls) for calls in sweep()] for name, sweep in SWEEPS.items()}))
