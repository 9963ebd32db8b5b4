"""Compile every kernel for GPUs that this machine need not have: registers, spills, shared memory, matrix instructions.

python benchmarks/cross_compile.py [--case LABEL] [--chip NAME] [--json benchmarks/results/cross_compile.json]

Prints a markdown table and ends with status 1 if a kernel spills, wants more shared memory than its chip gives a
program, multiplies without matrix instructions, or (on NVIDIA) does not load ahead or divides in 64 bits. Each case
calls a kernel's launcher (`chips.compile_launches`). Minutes for everything, seconds again later (Triton's cache).
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # what is interpreted can't be compiled
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9's default, said aloud

import torch
import triton
from chips import CHIPS, KIB, Chip, Row, compile_launches, resources
from pard_kernels import (
    CacheLayout,
    DraftTree,
    FeatureRows,
    History,
    accept_tree_path,
    add_target_features,
    build_draft_tree,
    compact_tree_kv,
    keep_tree_rows,
    lm_head_top_k,
    place_tree_rows,
    prepare_draft_inputs,
    speculative_attention,
    top_k_workspace,
)
from shapes import LLAMA_3_1_8B, LLAMA_3_2_1B, LLAMA_3_3_70B, QWEN3_0_6B, QWEN3_8B, ModelShape

NUM_REQUESTS, BLOCK_SIZE, MAX_BLOCKS = 4, 16, 8192
empty = partial(torch.empty, device="meta")
empty_int32 = partial(torch.empty, device="meta", dtype=torch.int32)
empty_int64 = partial(torch.empty, device="meta", dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call. float32 is for tests of correctness, and NVIDIA has no full fp32 matrix instruction: it may spill."""

    label: str
    call: Callable[[Chip], Any]
    is_float32: bool = False
    is_fp8: bool = False


def attention(
    chip: Chip, *, model: ModelShape, num_rows: int, num_gpus: int = 1, num_splits: int = 16,
    dtype: torch.dtype = torch.bfloat16, is_fp8: bool = False, is_tree: bool = False, **options: Any,
) -> None:  # fmt: skip
    """One GPU's share of a model's attention; query, key and value are views of one projection."""
    heads = [model.num_attention_heads // num_gpus] + [model.num_key_value_heads // num_gpus] * 2
    num_tokens, fp8_scale = NUM_REQUESTS * num_rows, empty(1) if is_fp8 else None
    qkv = empty(num_tokens, sum(heads), model.head_dim, dtype=dtype)
    cache = empty(2, MAX_BLOCKS, BLOCK_SIZE, heads[1], model.head_dim, dtype=chip.fp8 if is_fp8 else dtype)
    query, key, value = qkv.tensor_split((heads[0], heads[0] + heads[1]), dim=1)
    speculative_attention(
        query,
        key,
        value,
        cache[0],
        cache[1],
        empty_int32(NUM_REQUESTS, MAX_BLOCKS),
        empty_int32(NUM_REQUESTS + 1),
        empty_int32(NUM_REQUESTS),
        scale=model.head_dim**-0.5,
        max_num_rows=num_rows,
        num_splits=num_splits,
        ancestor_masks=empty_int64(num_tokens) if is_tree else None,
        key_scale=fp8_scale,
        value_scale=fp8_scale,
        **options,
    )


def layout(
    chip: Chip,
    *,
    num_drafts: int,
    groups: tuple[bool, ...] = (True,),
    is_tree: bool = False,
    reads_target: bool = False,
) -> None:
    """The inputs of a draft forward, whose layers lie in some of the groups of the K/V cache."""
    num_rows, num_slots, max_len = NUM_REQUESTS * 2 * num_drafts, 64, BLOCK_SIZE * MAX_BLOCKS
    starts = ("target_query_start_loc", "query_start_loc")
    prepare_draft_inputs(
        **{name: empty_int32(NUM_REQUESTS + 1) for name in starts},
        **{name: empty_int32(NUM_REQUESTS) for name in ("num_sampled", "num_rejected", "seq_lens")},
        **{name: empty_int32(num_rows) for name in ("target_input_ids", "input_ids")},
        **{name: empty_int64(num_rows) for name in ("target_positions", "positions")},
        kept_rows=empty_int32(num_rows) if is_tree else None,
        request_slots=empty_int64(NUM_REQUESTS),
        last_sampled=empty_int64(num_slots, 1),
        all_token_ids=empty_int32(num_slots, max_len),
        block_tables=tuple(empty_int32(num_slots, MAX_BLOCKS) if has_layers else None for has_layers in groups),
        num_blocks=empty_int32(len(groups), num_slots),
        num_draft_kv=empty_int32(num_slots),
        slot_mappings=empty_int64(len(groups), num_rows),
        sample_rows=empty_int64(NUM_REQUESTS, num_drafts),
        block_sizes=(BLOCK_SIZE,) * len(groups),
        mask_token_id=LLAMA_3_1_8B.vocab_size - 1,
        vocab_size=LLAMA_3_1_8B.vocab_size,
        max_model_len=max_len,
        caches_masks=False,
        features=FeatureRows(empty_int32(num_rows), empty_int32(NUM_REQUESTS, 2), empty_int32(num_slots), max_len)
        if reads_target
        else None,
    )


def features(chip: Chip, *, model: ModelShape, num_drafts: int) -> None:
    """What a PARD-2 draft reads of its target, into its embeddings."""
    num_rows = NUM_REQUESTS * 2 * num_drafts
    states = partial(empty, dtype=torch.bfloat16)
    add_target_features(
        embeddings=states(num_rows, model.hidden_size),
        features=states(BLOCK_SIZE * MAX_BLOCKS, model.hidden_size),
        feature_rows=empty_int32(num_rows),
        carries=empty_int32(NUM_REQUESTS, 2),
        query_start_loc=empty_int32(NUM_REQUESTS + 1),
        inputs_embeds=states(num_rows, model.hidden_size),
    )


def tree(chip: Chip, *, num_drafts: int, num_candidates: int, num_nodes: int) -> None:
    """The nodes that the target verifies of what a draft has proposed."""
    shape = (NUM_REQUESTS, num_drafts, num_candidates)
    build_draft_tree(
        candidate_ids=empty_int64(shape),
        candidate_logprobs=empty(shape),
        num_nodes=num_nodes,
        history=History(empty_int32(NUM_REQUESTS, 4096), empty_int32(NUM_REQUESTS)),
        out=DraftTree.empty(NUM_REQUESTS, num_nodes, "meta"),
        request_slots=empty_int64(NUM_REQUESTS),
    )


def tree_rows(chip: Chip, *, num_rows: int) -> None:
    """Where a tree's rows are, whom they see, and which of them are kept."""
    starts, slots = empty_int32(NUM_REQUESTS + 1), empty_int64(NUM_REQUESTS)
    place_tree_rows(
        positions=empty_int64(NUM_REQUESTS * num_rows),
        row_masks=empty_int64(NUM_REQUESTS * num_rows),
        row_starts=starts,
        logit_starts=starts,
        request_slots=slots,
        depths=empty_int32(64, num_rows),
        ancestors=empty_int64(64, num_rows),
        sign=1,
    )
    keep_tree_rows(
        kept_rows=empty_int32(NUM_REQUESTS * num_rows),
        row_starts=starts,
        logit_starts=starts,
        request_slots=slots,
        accepted_rows=empty_int32(64, num_rows),
        num_sampled=empty_int32(NUM_REQUESTS),
    )


def tree_path(chip: Chip, *, num_rows: int) -> None:
    """What the target accepts of trees, its root among the rows."""
    accept_tree_path(
        target_token_ids=empty_int64(NUM_REQUESTS * num_rows),
        draft_token_ids=empty_int32(NUM_REQUESTS * num_rows),
        row_starts=empty_int32(NUM_REQUESTS + 1),
        parents=empty_int32(64, num_rows),
        is_chain_only=empty(64, dtype=torch.bool),
        request_slots=empty_int64(NUM_REQUESTS),
        token_ids=empty_int64(NUM_REQUESTS, num_rows),
        accepted_rows=empty_int32(64, num_rows),
        num_sampled=empty_int32(NUM_REQUESTS),
    )


def tree_kv(chip: Chip, *, model: ModelShape, num_gpus: int = 1, is_fp8: bool = False) -> None:
    """Accepted nodes' keys and values in all layers of a model."""
    num_heads = model.num_key_value_heads // num_gpus
    dtype = torch.float8_e4m3fn if is_fp8 else torch.bfloat16  # only copied, so that every chip can
    compact_tree_kv(
        cache_addresses=empty_int64(32),
        layout=CacheLayout.of(empty(2, MAX_BLOCKS, BLOCK_SIZE, num_heads, model.head_dim, dtype=dtype)),
        block_table=empty_int32(64, MAX_BLOCKS),
        block_size=BLOCK_SIZE,
        request_slots=empty_int64(NUM_REQUESTS),
        num_computed=empty_int32(64),
        accepted_rows=empty_int32(64, 16),
        num_sampled=empty_int32(NUM_REQUESTS),
    )


def head(chip: Chip, *, model: ModelShape, num_rows: int, k: int, is_int8: bool = False) -> None:
    """The draft's best k tokens for each mask row."""
    lm_head_top_k(
        empty(num_rows, model.hidden_size, dtype=torch.bfloat16),
        empty(model.vocab_size, model.hidden_size, dtype=torch.int8 if is_int8 else torch.bfloat16),
        k=k,
        weight_scale=empty(model.vocab_size) if is_int8 else None,
        workspace=top_k_workspace(num_rows=num_rows, k=k, device="meta", num_splits=264),
    )


def attention_cases() -> Iterator[Case]:
    calls: dict[str, Row] = {}
    for k in (8, 15):
        for name, model, num_rows, options in (
            ("Llama-3.1-8B", LLAMA_3_1_8B, k + 1, {}),
            ("Llama-3.1-8B, tree of 33", LLAMA_3_1_8B, 33, {"is_tree": True}),
            ("Llama-3.1-8B, tree of 64", LLAMA_3_1_8B, 64, {"is_tree": True}),
            ("Llama-3.3-70B", LLAMA_3_3_70B, k + 1, {}),
            ("Llama-3.3-70B, TP 8", LLAMA_3_3_70B, k + 1, {"num_gpus": 8}),
            ("Llama-3.3-70B, TP 8, tree of 33", LLAMA_3_3_70B, 33, {"num_gpus": 8, "is_tree": True}),
            ("Qwen3-8B", QWEN3_8B, k + 1, {}),
            ("Llama-3.2-1B draft", LLAMA_3_2_1B, 2 * k, {}),
            ("Llama-3.2-1B draft, TP 8", LLAMA_3_2_1B, 2 * k, {"num_gpus": 8}),
            ("Qwen3-0.6B draft", QWEN3_0_6B, 2 * k, {}),
        ):
            label = name if "is_tree" in options else f"{name}, K={k}"
            calls[label] = {"model": model, "num_rows": num_rows} | options
    for head_size in (80, 96, 256):
        calls[f"heads of {head_size}"] = {"model": replace(LLAMA_3_1_8B, head_dim=head_size), "num_rows": 16}
    calls["soft cap"] = {"model": LLAMA_3_1_8B, "num_rows": 16, "soft_cap": 50.0}
    calls["window, tree of 33"] = {"model": LLAMA_3_1_8B, "num_rows": 33, "window": 4096, "is_tree": True}
    calls |= {f"{label}, one split": call | {"num_splits": 1} for label, call in calls.items()}
    calls |= {f"{label}, FP8 cache": call | {"is_fp8": True} for label, call in calls.items()}
    calls["float32, K=15"] = {"model": LLAMA_3_1_8B, "num_rows": 16, "dtype": torch.float32}
    for label, call in calls.items():
        yield Case(label=label, call=partial(attention, **call), is_fp8="is_fp8" in call, is_float32="dtype" in call)


def cases() -> Iterator[Case]:
    yield from attention_cases()
    yield Case(label="drafts", call=partial(layout, num_drafts=15))
    groups = (True, False, True)
    yield Case(
        label="drafts, tree, two of three groups", call=partial(layout, num_drafts=15, groups=groups, is_tree=True)
    )
    yield Case(label="drafts, no cache", call=partial(layout, num_drafts=15, groups=()))
    yield Case(label="drafts, features", call=partial(layout, num_drafts=15, reads_target=True))
    yield Case(label="features, Qwen3-0.6B draft", call=partial(features, model=QWEN3_0_6B, num_drafts=15))
    for num_nodes in (31, 63):
        call = partial(tree, num_drafts=15, num_candidates=16, num_nodes=num_nodes)
        yield Case(label=f"tree of {1 + num_nodes}", call=call)
    yield Case(label="tree path", call=partial(tree_path, num_rows=64))
    yield Case(label="tree rows", call=partial(tree_rows, num_rows=64))
    yield Case(label="tree K/V, Llama-3.1-8B", call=partial(tree_kv, model=LLAMA_3_1_8B))
    yield Case(
        label="tree K/V, Llama-3.3-70B, TP 8, FP8", call=partial(tree_kv, model=LLAMA_3_3_70B, num_gpus=8, is_fp8=True)
    )
    for head_size in (3, 80):
        odd = replace(LLAMA_3_1_8B, head_dim=head_size)
        yield Case(label=f"tree K/V, heads of {head_size}", call=partial(tree_kv, model=odd))
    for name, model in (("Llama-3.2-1B", LLAMA_3_2_1B), ("Qwen3-0.6B", QWEN3_0_6B)):
        for num_rows, k in ((8, 1), (15, 16), (64, 1), (64, 16), (240, 1)):
            call = partial(head, model=model, num_rows=num_rows, k=k)
            yield Case(label=f"{name} draft, {num_rows} rows, top {k}", call=call)
            if k == 1:
                yield Case(label=f"{name} draft, {num_rows} rows, int8", call=partial(call, is_int8=True))


def compile_cases(labels: list[str], chips: list[str]) -> list[Row]:
    """A row for each kernel that differs, under the first case that launches it; everything if nothing is named."""
    rows: dict[tuple[str, str], Row] = {}
    for case in cases():
        for chip in CHIPS:
            is_asked_for = case.label in (labels or [case.label]) and chip.name in (chips or [chip.name])
            if not is_asked_for or (case.is_fp8 and chip.fp8 is None):
                continue
            for kernel in compile_launches(chip, case.call):
                if (chip.name, kernel.hash) not in rows:
                    row = resources(chip, kernel) | {"case": case.label, "is_float32": case.is_float32}
                    rows[chip.name, kernel.hash] = row
                    print(f"{row['kernel']}, {case.label}, {chip.name}", file=sys.stderr)
    return list(rows.values())


def problems(rows: list[Row]) -> list[str]:
    """What no kernel may do; float32 is exempt from all but the limit of shared memory."""
    found = []
    for row in rows:
        name = f"{row['kernel']}, {row['case']}, {row['chip']}"
        is_matrix_kernel = row["kernel"] in ("speculative_attention", "lm_head_top_k")
        if row["shared"] > row["shared_limit"]:
            found.append(f"{name}: {row['shared']} bytes of shared memory, {row['shared_limit']} are there")
        if row["spills"] and not row["is_float32"]:
            found.append(f"{name}: spills {row['spills']}")
        if row["long_divisions"]:
            found.append(f"{name}: {row['long_divisions']} divisions of 64 bits, for which there is no instruction")
        if is_matrix_kernel and not row["matrix_instruction"] and not row["is_float32"]:
            found.append(f"{name}: no matrix instruction")
        if is_matrix_kernel and row.get("asynchronous_copies") == 0:
            found.append(f"{name}: waits for each load, no asynchronous copy")
    return found


def markdown(rows: list[Row]) -> str:
    """Registers and KiB of shared memory, a column a chip."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        spills = f", **{row['spills']} spilled**" if row["spills"] else ""
        cell = f"{row['registers']} / {row['shared'] / KIB:.0f}{spills}"
        cells.setdefault((row["kernel"], row["case"]), {})[row["chip"]] = cell
    names = [chip.name for chip in CHIPS]
    lines = [f"| kernel | case | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for (kernel, case), found in sorted(cells.items()):
        lines.append(f"| {kernel} | {case} | {' | '.join(found.get(name, '') for name in names)} |")
    note = "Registers of a thread / KiB of shared memory; empty: as in a row above, or no FP8."
    return "\n".join([*lines, "", f"Triton {triton.__version__}. {note}"])


def main() -> int:
    labels = [case.label for case in cases()]
    parser = argparse.ArgumentParser(description="Compile every kernel for GPUs that need not be there.")
    parser.add_argument("--case", action="append", default=[], choices=labels, metavar="LABEL", help="only this one")
    parser.add_argument("--chip", action="append", default=[], choices=[chip.name for chip in CHIPS], help="only this")
    parser.add_argument("--json", type=Path, help="write the table with its conditions here")
    options = parser.parse_args()
    rows = compile_cases(options.case, options.chip)
    found = problems(rows)
    if options.json:
        result = {"triton": triton.__version__, "torch": torch.__version__, "problems": found, "rows": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(rows))
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
