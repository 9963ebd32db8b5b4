"""The launch of `prepare_draft_inputs`. An engine needs one variant of the kernel, and one without a K/V cache."""

from torch import Tensor

from pard_kernels.prepare_draft_inputs.checks import check_buffers, check_features, check_groups, check_requests
from pard_kernels.prepare_draft_inputs.kernel import prepare_draft_inputs_kernel
from pard_kernels.prepare_draft_inputs.reference import FeatureRows

# One size for every step: a decode step leaves most of a tile idle, which costs less than a compilation.
BLOCK_ROWS = 256
BLOCK_K = 64
UNBOUNDED = 2**31 - 1
NO_FEATURES = (None, None, None, 0)


def prepare_draft_inputs(
    *,
    target_input_ids: Tensor,
    target_positions: Tensor,
    target_query_start_loc: Tensor,
    kept_rows: Tensor | None,
    request_slots: Tensor,
    num_sampled: Tensor,
    num_rejected: Tensor,
    last_sampled: Tensor,
    all_token_ids: Tensor,
    block_tables: tuple[Tensor | None, ...],
    num_blocks: Tensor,
    num_draft_kv: Tensor,
    query_start_loc: Tensor,
    input_ids: Tensor,
    positions: Tensor,
    slot_mappings: Tensor,
    seq_lens: Tensor,
    sample_rows: Tensor,
    block_sizes: tuple[int, ...],
    mask_token_id: int,
    vocab_size: int,
    max_model_len: int,
    caches_masks: bool,
    features: FeatureRows | None,
) -> None:
    """Lay out one draft forward. Definition and argument shapes: `reference.py`."""
    check_requests(request_slots, query_start_loc, seq_lens, sample_rows, kept_rows, target_input_ids)
    check_buffers(input_ids, positions, slot_mappings)
    check_groups(all_token_ids, block_tables, num_blocks, slot_mappings, block_sizes)
    check_features(features, input_ids, sample_rows, last_sampled)
    num_reqs, num_drafts = sample_rows.shape
    has_cache = any(table is not None for table in block_tables)
    prepare_draft_inputs_kernel[(num_reqs,)](
        target_input_ids,
        target_positions,
        target_query_start_loc,
        kept_rows,
        request_slots,
        num_sampled,
        num_rejected,
        last_sampled,
        all_token_ids, all_token_ids.stride(0),
        block_tables, tuple(0 if table is None else table.stride(0) for table in block_tables),
        num_blocks, num_blocks.stride(0),
        num_draft_kv,
        query_start_loc,
        input_ids,
        positions,
        slot_mappings, slot_mappings.stride(0),
        seq_lens,
        sample_rows,
        request_slots.shape[0], input_ids.shape[0], num_drafts, mask_token_id, vocab_size, max_model_len,
        UNBOUNDED if has_cache else 0, int(caches_masks),
        *(features or NO_FEATURES), 0 if features is None else features.nothing,
        BLOCK_SIZES=block_sizes, NUM_GROUPS=len(block_sizes), BLOCK_ROWS=BLOCK_ROWS, BLOCK_K=BLOCK_K,
    )  # fmt: skip
