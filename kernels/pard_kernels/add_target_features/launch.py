"""The launch of `add_target_features`; an engine needs one variant of the kernel."""

from torch import Tensor
from triton import cdiv

from pard_kernels.add_target_features.checks import check_arguments
from pard_kernels.add_target_features.kernel import add_target_features_kernel

# A decode has 2K rows; the loop of a long prompt's program is short beside its forward.
BLOCK_ROWS = 16
BLOCK_H = 128


def add_target_features(
    *,
    embeddings: Tensor,
    features: Tensor,
    feature_rows: Tensor,
    carries: Tensor,
    query_start_loc: Tensor,
    inputs_embeds: Tensor,
) -> None:
    """Add each draft row's feature to its embedding. Definition and argument shapes: `reference.py`."""
    check_arguments(embeddings, features, feature_rows, carries, query_start_loc, inputs_embeds)
    num_rows, hidden_size = embeddings.shape
    add_target_features_kernel[(query_start_loc.shape[0] - 1, cdiv(hidden_size, BLOCK_H))](
        embeddings, embeddings.stride(0),
        features, features.stride(0),
        feature_rows,
        carries,
        query_start_loc,
        inputs_embeds, inputs_embeds.stride(0),
        num_rows, hidden_size,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_H=BLOCK_H,
    )  # fmt: skip
