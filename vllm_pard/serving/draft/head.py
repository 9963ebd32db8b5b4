"""The draft's lm_head under greedy drafting: the best token of each row, without the logits in memory.

N rows · H hidden size · V tokens of this rank's shard
"""

from dataclasses import dataclass
from typing import Any

import torch
from pard_kernels import TopK, lm_head_top_k, median_milliseconds, merge_top_k, top_k_workspace
from torch import Tensor, nn
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from vllm_pard.config import ConfigError

logger = init_logger("vllm.vllm_pard")


@dataclass(frozen=True, kw_only=True)
class DraftHead:
    """This rank's shard of the lm_head, cut to the tokens that may be drafted."""

    weight: Tensor  # [V, H], int8 with a scale for each row, else of the model's dtype
    weight_scale: Tensor | None  # [V] float32
    bias: Tensor | None  # [V]
    scale: float
    soft_cap: float
    vocab_start: int  # token of row 0, if rows are tokens in order
    token_ids: Tensor | None  # [V] int64, tokens of the rows of a trimmed vocabulary
    workspace: TopK
    group: Any | None  # of tensor parallelism, None for a whole lm_head

    def best(self, hidden: Tensor) -> Tensor:
        """The token with the highest logit. [N, H] -> [N] int64, the same on every rank"""
        top = lm_head_top_k(
            hidden,
            self.weight,
            k=1,
            weight_scale=self.weight_scale,
            bias=self.bias,
            scale=self.scale,
            soft_cap=self.soft_cap,
            vocab_start=self.vocab_start,
            workspace=self.workspace,
        )
        if self.token_ids is not None:
            top = top._replace(ids=self.token_ids[top.ids])
        return self._best_of_ranks(top).ids[:, 0] if self.group is not None else top.ids[:, 0]

    def _best_of_ranks(self, top: TopK) -> TopK:
        """One message of three numbers a row, instead of all logits."""
        packed = torch.stack([top.ids[:, 0].int().view(torch.float32), top.logits[:, 0], top.log_sum_exps])  # [3, N]
        ranks = self.group.all_gather(packed[None].contiguous(), dim=0)  # type: ignore[union-attr]  # [ranks, 3, N]
        ids, logits, log_sum_exps = ranks.unbind(1)
        return merge_top_k(ids.contiguous().view(torch.int32)[..., None], logits[..., None], log_sum_exps)


def choose_head(
    draft: nn.Module,
    *,
    num_tokens: int,  # tokens that draft and target share
    token_ids: Tensor | None,  # [any] int64 of a trimmed vocabulary
    use_int8: bool,
    num_drafts: int,
    max_num_reqs: int,
    group: Any,  # of tensor parallelism
) -> DraftHead | None:
    """The head that greedy drafts use; None: the model's logits choose.

    Under tensor parallelism, trimmed or in 8 bits it is needed; otherwise a GPU takes whichever is faster.
    """
    head = _cut_head(draft, num_tokens, token_ids, use_int8, num_drafts * max_num_reqs, group)
    if head is None:
        logger.warning("PARD: the lm_head of %s is not a plain matrix; drafts use its logits", type(draft).__name__)
        return None
    is_needed = head.group is not None or use_int8 or token_ids is not None
    is_chosen = is_needed or (head.weight.is_cuda and is_faster(head, draft, num_drafts))
    return head if is_chosen else None


def _cut_head(
    draft: nn.Module, num_tokens: int, token_ids: Tensor | None, use_int8: bool, max_num_rows: int, group: Any
) -> DraftHead | None:
    lm_head: Any = getattr(draft, "lm_head", None)
    processor: Any = getattr(draft, "logits_processor", None)
    if type(processor) is not LogitsProcessor or processor.logits_as_input or lm_head is None:
        return None
    if not isinstance(lm_head.quant_method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod):
        return None
    weight, bias = lm_head.weight.data, getattr(lm_head, "bias", None)
    if processor.head_dtype not in (None, weight.dtype):
        return None
    start, end = lm_head.shard_indices.org_vocab_start_index, lm_head.shard_indices.org_vocab_end_index
    if token_ids is None:
        rows: Tensor | slice = slice(0, min(end, num_tokens) - start)
    else:
        token_ids = token_ids[(token_ids >= start) & (token_ids < min(end, num_tokens))]
        rows = token_ids - start
    weight, bias = weight[rows], None if bias is None else bias[rows]
    if len(weight) == 0:
        raise ConfigError(
            f'"draft_vocab" has no token from {start} to {end - 1}, the share of one of {lm_head.tp_size} ranks of '
            'tensor parallelism: leave it out, or set "draft_tensor_parallel_size": 1'
        )
    weight, weight_scale = quantize_rows(weight) if use_int8 else (weight, None)
    return DraftHead(
        weight=weight,
        weight_scale=weight_scale,
        bias=bias,
        scale=processor.scale,
        soft_cap=processor.soft_cap or 0.0,
        vocab_start=start if token_ids is None else 0,
        token_ids=token_ids,
        workspace=top_k_workspace(num_rows=max_num_rows, k=1, device=weight.device),
        group=group if lm_head.tp_size > 1 else None,
    )


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to 8 bits, symmetric about zero. [V, H] -> [V, H] int8, [V] float32"""
    scale = weight.abs().amax(1).float().clamp(min=torch.finfo(torch.float16).tiny) / 127
    rounded = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for rows in torch.arange(len(weight), device=weight.device).tensor_split(1 + len(weight) // 4096):
        rounded[rows] = (weight[rows] / scale[rows, None]).round().to(torch.int8)
    return rounded, scale


def is_faster(head: DraftHead, draft: nn.Module, num_rows: int) -> bool:
    """Time the head against the model's logits, on this GPU and for `num_rows` rows; the faster one drafts."""
    hidden = head.weight.new_zeros(num_rows, head.weight.shape[1])
    ours = median_milliseconds(lambda: head.best(hidden))
    theirs = median_milliseconds(lambda: draft.compute_logits(hidden).argmax(-1))  # type: ignore[operator]
    torch.cuda.empty_cache()  # the timing's own buffers, before vLLM looks at what is free
    logger.info("PARD: best token of %d rows: %.3f ms fused, %.3f ms by logits", num_rows, ours, theirs)
    return ours < theirs
