"""What `lm_head_top_k` can be asked for."""

import torch
import triton
from torch import Tensor

from pard_kernels.lm_head_top_k.merge_top_k import TopK

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_K = 64


def check_head(hidden: Tensor, weight: Tensor, weight_scale: Tensor | None, bias: Tensor | None) -> None:
    num_vocab_rows, hidden_size = weight.shape
    weight_dtype = hidden.dtype if weight_scale is None else torch.int8
    if hidden.shape[1:] != (hidden_size,) or hidden.dtype not in DTYPES or weight.dtype != weight_dtype:
        raise ValueError(
            f"hidden must be [N, {hidden_size}], as weight {tuple(weight.shape)}, and both of one dtype, float16, "
            f"bfloat16 or float32, or weight int8 with a weight_scale; got {tuple(hidden.shape)}, {hidden.dtype} and "
            f"{weight.dtype}"
        )
    for name, tensor in (("bias", bias), ("weight_scale", weight_scale)):
        if tensor is not None and tensor.shape != (num_vocab_rows,):
            raise ValueError(f"{name} must be [{num_vocab_rows}]; got {tuple(tensor.shape)}")


def check_sizes(hidden: Tensor, num_vocab_rows: int, k: int, soft_cap: float, num_valid: int, workspace: TopK) -> None:
    if not 1 <= k <= min(MAX_K, num_valid) or num_valid > num_vocab_rows:
        raise ValueError(
            f"weight has {num_vocab_rows} rows, so num_valid must be 1 to {num_vocab_rows}, and k 1 to {MAX_K} and no "
            f"more than num_valid; got num_valid={num_valid} and k={k}"
        )
    if soft_cap < 0:
        raise ValueError(f"soft_cap must be 0 (none) or more; got {soft_cap}")
    if workspace.ids.shape[1] < hidden.shape[0] or workspace.ids.shape[2] != triton.next_power_of_2(k):
        got = f"{tuple(workspace.ids.shape)} [S, N, k as a power of two]"
        raise ValueError(f"the workspace must be top_k_workspace(num_rows={hidden.shape[0]} or more, k={k}); got {got}")
