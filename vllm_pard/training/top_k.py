"""The k most likely tokens of a distribution, in place of its hidden state and lm_head: small enough for a disk.

N tokens · U of them that are predicted from · C rows of a chunk · V trained vocabulary · k ids of V that are kept
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_pard.training.row_losses import Head

__all__ = ["TopKHead", "TopKOutput", "top_k"]

LOGITS_AT_ONCE = 1 << 26  # elements: 256 MiB in float32
LEAST_LEFT = 1e-12  # of the probability, so that its logarithm is a number


@dataclass(frozen=True)
class TopKHead:
    """Stands in for the target's `Head`."""

    ids: Tensor  # int64 [U, k]
    log_probs: Tensor  # float32 [U, k]

    def log_probs_beside(self, draft_log_probs: Tensor, positions: slice, which: Tensor) -> Tensor:
        """Log-probabilities over the vocabulary of the positions that the rows of a chunk predict from. float32 [C, V]

        What the k ids leave of the probability has among the others the shape that the draft gives it. The KL
        divergence is then that of k + 1 outcomes, the last being any other id: the nearest below the full one that
        these numbers allow, with the full one's gradient for each of the k ids, and for the others in sum. Shared
        evenly instead, what is left would pull the draft towards ids that are never likely; left out, it would teach
        that they never come.
        """
        ids, log_probs = self.ids[positions][which], self.log_probs[positions][which]  # [C, k]
        others = draft_log_probs.scatter(1, ids, -torch.inf).logsumexp(dim=1, keepdim=True)  # [C, 1]
        left = (1 - log_probs.double().exp().sum(dim=1, keepdim=True)).clamp(min=LEAST_LEFT)
        return (draft_log_probs + (left.log().float() - others)).scatter(1, ids, log_probs)


@dataclass(frozen=True)
class TopKOutput:
    """Stands in for `TargetOutput`: of each token of a batch; no gradient."""

    features: Tensor  # [N, F]; F is 0 where no features are read
    log_probs: Tensor  # float32 [N]: log P(x_t | x_{<t}); 0 for the first token of a document
    top_ids: Tensor  # int64 [N, k]; k is 0 where nothing is distilled
    top_log_probs: Tensor  # float32 [N, k]

    def head(self, positions: Tensor, vocabulary: object = None) -> TopKHead:
        """Of some tokens, int64 [U], over the vocabulary that the top k were taken from."""
        return TopKHead(self.top_ids[positions], self.top_log_probs[positions])


def top_k(head: Head, k: int) -> tuple[Tensor, Tensor]:
    """The k most likely ids of each row, indices into the head's vocabulary, and their log-probabilities in it, a few
    rows of logits at a time. int32 [N, k], float32 [N, k]
    """
    step = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    ids, log_probs = [], []
    for start in range(0, len(head.hidden), step):
        logits = head.logits(slice(start, start + step)).float()  # [C, V]
        top = logits.topk(k, dim=-1)
        ids.append(top.indices.int())
        log_probs.append(top.values - logits.logsumexp(dim=-1, keepdim=True))
    return torch.cat(ids), torch.cat(log_probs)
