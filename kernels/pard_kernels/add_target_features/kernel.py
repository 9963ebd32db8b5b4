"""One launch, one program for a request and a part of the hidden size. Definition: `reference.py`."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["feature_rows_ptr", "carries_ptr", "query_start_loc_ptr", "num_rows"])
def add_target_features_kernel(
    embeddings_ptr, stride_embeddings_row,
    features_ptr, stride_features_row,
    feature_rows_ptr,
    carries_ptr,
    query_start_loc_ptr,
    inputs_embeds_ptr, stride_inputs_embeds_row,
    num_rows, hidden_size,
    BLOCK_ROWS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    req = tl.program_id(0).to(tl.int64)
    offs_h = tl.program_id(1).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask_h = offs_h < hidden_size
    row = tl.minimum(tl.load(query_start_loc_ptr + req), num_rows).to(tl.int64)
    row_end = tl.minimum(tl.load(query_start_loc_ptr + req + 1), num_rows).to(tl.int64)

    for i in range(row, row_end, BLOCK_ROWS):
        offs_row = i + tl.arange(0, BLOCK_ROWS)
        mask_row = offs_row < row_end
        mask = mask_row[:, None] & mask_h[None, :]
        feature_row = tl.load(feature_rows_ptr + offs_row, mask=mask_row, other=0).to(tl.int64)
        embedding = tl.load(
            embeddings_ptr + offs_row[:, None] * stride_embeddings_row + offs_h[None, :], mask=mask, other=0.0
        )
        feature = tl.load(
            features_ptr + feature_row[:, None] * stride_features_row + offs_h[None, :], mask=mask, other=0.0
        )
        tl.store(
            inputs_embeds_ptr + offs_row[:, None] * stride_inputs_embeds_row + offs_h[None, :],
            embedding.to(tl.float32) + feature.to(tl.float32),
            mask=mask,
        )

    # No thread may overwrite the row that is carried while another one has yet to read it.
    tl.debug_barrier()
    source = tl.load(carries_ptr + 2 * req).to(tl.int64)
    place = tl.load(carries_ptr + 2 * req + 1).to(tl.int64)
    carried = tl.load(features_ptr + source * stride_features_row + offs_h, mask=mask_h, other=0.0)
    tl.store(features_ptr + place * stride_features_row + offs_h, carried, mask=mask_h)
