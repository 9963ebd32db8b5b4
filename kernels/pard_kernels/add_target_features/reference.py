"""What a draft reads of its target: the twin that the kernel is tested against.

B requests · D draft rows · H hidden size of the draft · T rows of the table of features
"""

from torch import Tensor


def add_target_features(
    *,
    embeddings: Tensor,  # [D, H]
    features: Tensor,  # [T, H], in and out
    feature_rows: Tensor,  # [>= D] int32
    carries: Tensor,  # [>= B, 2] int32
    query_start_loc: Tensor,  # [B + 1] int32
    inputs_embeds: Tensor,  # [>= D, H], out
) -> None:
    """Add to the embedding of each draft row the projected feature that it reads (PARD-2, arXiv 2605.08632).

    The rows `query_start_loc[b] : query_start_loc[b + 1]` belong to request b; rows of none are left alone. Sums are
    taken in float32 and rounded once. Then the feature in row `carries[b, 0]` is copied to row `carries[b, 1]`, which
    is read by rows of the same request alone: its next step finds it there. `FeatureRows` says where rows and carries
    come from.
    """
    num_rows = embeddings.shape[0]
    for req in range(query_start_loc.shape[0] - 1):
        start, stop = (min(int(query_start_loc[i]), num_rows) for i in (req, req + 1))
        read = features[feature_rows[start:stop].long()]
        inputs_embeds[start:stop] = (embeddings[start:stop].float() + read.float()).to(inputs_embeds.dtype)
    for source, place in carries[: query_start_loc.shape[0] - 1].tolist():
        features[place] = features[source]
