"""What the best tokens of a vocabulary are: the twins that the kernels are tested against.

N rows · H hidden size · V rows of weight · P parts
"""

import torch
from torch import Tensor

from pard_kernels.lm_head_top_k.merge_top_k import TopK


def lm_head_top_k(
    hidden: Tensor,  # [N, H] float16, bfloat16 or float32, any strides
    weight: Tensor,  # [V, H] as hidden, or int8 with weight_scale; any strides
    *,
    k: int,  # 1 to 64, no more than num_valid
    weight_scale: Tensor | None = None,  # [V] float32
    bias: Tensor | None = None,  # [V]
    scale: float = 1.0,
    soft_cap: float = 0.0,  # 0: none
    vocab_start: int = 0,
    num_valid: int | None = None,  # None: V
    workspace: TopK | None = None,
) -> TopK:
    """The k best tokens of each row and the sum of exponentials of all its logits, from the best down.

    Logits are `hidden @ weight.T * weight_scale + bias` in float32, then capped to `soft_cap * tanh(logit / soft_cap)`,
    then multiplied by `scale`: vLLM's order. Rows of weight from num_valid on are padding. Row v is token
    `vocab_start + v`: each rank of tensor parallelism takes its part of the vocabulary, and `merge_top_k` makes one of
    them.

    Of equal logits the smallest id is best. NaN counts as -inf, so that a row of nothing but NaN gets the first ids.

    `workspace`: where the parts of the kernel meet (`top_k_workspace`; allocated if None); no result depends on it
    beyond rounding.
    """
    num_valid = weight.shape[0] if num_valid is None else num_valid
    if not 1 <= k <= num_valid:
        raise ValueError(f"k must be 1 to num_valid={num_valid}; got {k}")
    logits = hidden.float() @ weight[:num_valid].float().T  # [N, num_valid]
    if weight_scale is not None:
        logits = logits * weight_scale[:num_valid]
    if bias is not None:
        logits = logits + bias[:num_valid].float()
    if soft_cap > 0:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    logits = (logits * scale).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    best, ids = logits.sort(dim=1, descending=True, stable=True)
    return TopK(ids[:, :k] + vocab_start, best[:, :k], logits.logsumexp(1))


def merge_top_k(
    ids: Tensor,  # [P, N, k] int32 or int64, no token twice
    logits: Tensor,  # [P, N, k] float32
    log_sum_exps: Tensor,  # [P, N] float32
    *,
    k: int | None = None,  # how many to keep; None: as many as each part has
    vocab_start: int = 0,
) -> TopK:
    """The best of what several parts of a vocabulary hold, as if they had been one; `vocab_start` is added to ids."""
    k = ids.shape[2] if k is None else k
    ids, order = ids.transpose(0, 1).flatten(1).long().sort(dim=1)  # [N, P * k]
    logits = logits.transpose(0, 1).flatten(1).gather(1, order)
    best, order = logits.sort(dim=1, descending=True, stable=True)
    return TopK(ids.gather(1, order)[:, :k] + vocab_start, best[:, :k], log_sum_exps.logsumexp(0))
