"""What `add_target_features` can be asked for: shapes and strides, read without a look at the device."""

from torch import Tensor


def check_arguments(
    embeddings: Tensor,
    features: Tensor,
    feature_rows: Tensor,
    carries: Tensor,
    query_start_loc: Tensor,
    inputs_embeds: Tensor,
) -> None:
    """One width, as many rows as embeddings, as many carries as requests."""
    num_rows, hidden_size = embeddings.shape
    for name, tensor in (("embeddings", embeddings), ("features", features), ("inputs_embeds", inputs_embeds)):
        if tensor.shape[-1] != hidden_size or tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} must be {hidden_size} wide, as embeddings are, and contiguous in the last dimension; "
                f"got {tuple(tensor.shape)} with strides {tensor.stride()}"
            )
    if inputs_embeds.shape[0] < num_rows or feature_rows.shape[0] < num_rows:
        raise ValueError(
            f"embeddings has {num_rows} rows, so inputs_embeds and feature_rows must have as many; "
            f"got {tuple(inputs_embeds.shape)} and {tuple(feature_rows.shape)}"
        )
    num_reqs = query_start_loc.shape[0] - 1
    if carries.shape[0] < num_reqs or not carries.is_contiguous():
        raise ValueError(
            f"carries must be contiguous [{num_reqs}, 2]; got {tuple(carries.shape)} with strides {carries.stride()}"
        )
