"""What a draft is trained for: a loss for each row, and how much each row counts.

A loss takes the log-probabilities of C rows and gives [C]. A weight comes from the chains: how likely it is that a step
of speculative decoding gets as far as a row. All in float32, whatever the models run in.

C rows · R rows of the batch · N tokens · P depths · V vocabulary
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm_pard.training.cod.rows import Rows

__all__ = [
    "cat_weights",
    "cross_entropy",
    "d_pace_weights",
    "forward_kl",
    "likelihood_of_acceptance",
    "total_variation",
]


def cross_entropy(log_probs: Tensor, labels: Tensor) -> Tensor:
    """-log q(x) of the label under the draft (PARD, arXiv 2504.18583). [C, V], int64 [C] -> [C]"""
    return F.nll_loss(log_probs, labels, reduction="none")


def forward_kl(log_probs: Tensor, target_log_probs: Tensor) -> Tensor:
    """KL(p || q) = sum_x p(x) (log p(x) - log q(x)), p the target and q the draft (PARD-2, arXiv 2605.08632).

    [C, V] and [C, V] -> [C]
    """
    return F.kl_div(log_probs, target_log_probs, log_target=True, reduction="none").sum(dim=-1)


def total_variation(log_probs: Tensor, target_log_probs: Tensor) -> Tensor:
    """1 - sum_x min(p(x), q(x)): how often rejection sampling at temperature 1 refuses the draft (arXiv 2211.17192).

    [C, V] and [C, V] -> [C], from 0 to 1
    """
    return 1 - _overlap(log_probs, target_log_probs)


def likelihood_of_acceptance(log_probs: Tensor, target_log_probs: Tensor) -> Tensor:
    """-log sum_x min(p(x), q(x)): the negative log of the acceptance at temperature 1 (LK, arXiv 2602.23881).

    Like the total variation, but a row whose draft is far off still has a gradient. [C, V] and [C, V] -> [C]
    """
    return -_overlap(log_probs, target_log_probs).clamp(min=torch.finfo(torch.float32).tiny).log()


def cat_weights(rows: Rows, log_probs: Tensor) -> Tensor:
    """Confidence-Adaptive Token weights: w(n, i) = prod_{j=1..i} P_target(x_{n+j} | x_{<n+j}) (PARD-2, section 3.3).

    How likely the target itself is to write the tokens that a row takes for granted. 1 at depth 0.

    Args:
        rows: the rows of the batch [R].
        log_probs: log P_target(x_t | x_{<t}) of each token [N]; what stands for a document's first token is not read.

    Returns:
        float32 [R], from 0 to 1; no gradient.
    """
    total = log_probs.detach().double().cumsum(dim=0)
    last = (rows.anchors + rows.depths).clamp(max=len(total) - 1)
    return (total[last] - total[rows.anchors]).exp().float()


def d_pace_weights(rows: Rows, label_log_probs: Tensor, *, num_depths: int, smoothing: float) -> Tensor:
    """Weights by which cross-entropy ascends the expected number of accepted tokens (D-PACE, arXiv 2605.18810).

    With c_j the draft's own confidence in the label at depth j of a chain, E = sum_k prod_{j<=k} c_j tokens are
    expected to be accepted, and dE / d log c_j = sum_{k>=j} prod_{i<=k} c_i. Confidences are smoothed,
    c -> s + (1 - s) c, so that deep rows learn before shallow ones are right.

    Args:
        rows: the rows of the batch [R].
        label_log_probs: log of the draft's probability of each label [R]; not read where there is no label.
        num_depths: P.
        smoothing: s, from 0 (none) to 1 (all rows of a chain count by how many come after).

    Returns:
        float32 [R]; no gradient. 0 where there is no label.
    """
    is_labelled = rows.labels >= 0
    confidence = smoothing + (1 - smoothing) * label_log_probs.detach().float().exp()
    num_anchors = int(rows.anchors.max()) + 1
    chains = confidence.new_zeros(num_anchors, num_depths)  # 0 where a chain has ended
    chains[rows.anchors[is_labelled], rows.depths[is_labelled]] = confidence[is_labelled]
    reached = chains.cumprod(dim=1)
    after = reached.flip(1).cumsum(dim=1).flip(1)  # [N, P]
    weights = after[rows.anchors, rows.depths.clamp(max=num_depths - 1)]
    return torch.where(is_labelled, weights, 0.0)


def _overlap(log_probs: Tensor, target_log_probs: Tensor) -> Tensor:
    """sum_x min(p(x), q(x))"""
    return torch.minimum(log_probs, target_log_probs).exp().sum(dim=-1)
