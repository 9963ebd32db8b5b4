"""The draft's lm_head: the best tokens of each row, one or a tree's candidates, without the logits in memory where that
pays.

N rows · H hidden size · V tokens of this rank's shard · k best tokens
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pard_kernels import (
    TopK,
    lm_head_top_k,
    median_milliseconds,
    merge_top_k,
    top_k_workspace,
    warm_up_lm_head_top_k,
)
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
    lm_head_rows: Tensor | slice  # of the model's lm_head, that the weight is made of
    k: int
    workspace: TopK
    group: Any | None  # of tensor parallelism, None for a whole lm_head

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "weight_scale": self.weight_scale,
            "bias": self.bias,
            "scale": self.scale,
            "soft_cap": self.soft_cap,
            "vocab_start": self.vocab_start,
            "workspace": self.workspace,
        }

    def top(self, hidden: Tensor) -> TopK:
        """The tokens with the highest logits of rows [N, H], the same on every rank."""
        top = lm_head_top_k(hidden, self.weight, **self._options)
        if self.token_ids is not None:
            top = top._replace(ids=self.token_ids[top.ids])
        return self._top_of_ranks(top) if self.group is not None else top

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile every variant for hidden states of this dtype."""
        warm_up_lm_head_top_k(self.weight, dtype=dtype, max_num_rows=self.workspace.ids.shape[1], **self._options)
        if self.group is not None:
            self.top(torch.zeros(1, self.weight.shape[1], dtype=dtype, device=self.weight.device))  # merges ranks

    def reload(self, draft: Any) -> None:
        """Copy the lm_head's weights again where this head has a copy of its own."""
        rows = self.lm_head_rows
        if self.weight_scale is not None:
            weight, scale = quantize_rows(draft.lm_head.weight.data[rows])
            self.weight.copy_(weight)
            self.weight_scale.copy_(scale)
        elif self.token_ids is not None:
            self.weight.copy_(draft.lm_head.weight.data[rows])
        if self.bias is not None and self.token_ids is not None:
            self.bias.copy_(draft.lm_head.bias.data[rows])

    def _top_of_ranks(self, top: TopK) -> TopK:
        """One message of 2k + 1 numbers a row, instead of all logits."""
        packed = torch.cat([top.ids.int().view(torch.float32), top.logits, top.log_sum_exps[:, None]], dim=1)
        ranks = self.group.all_gather(packed[None], dim=0)  # type: ignore[union-attr]  # [ranks, N, 2k + 1]
        return merge_top_k(ranks[..., : self.k].view(torch.int32), ranks[..., self.k : -1], ranks[..., -1])


class GreedyHead:
    """Chooses the best tokens of each row: by the fused head, or by the model's logits where those are faster."""

    def __init__(self, fused: DraftHead, draft: nn.Module, *, is_needed: bool) -> None:
        """`is_needed`: only the fused head gives these tokens (tensor parallelism, trimmed, 8 bits)."""
        self.fused = fused
        self.draft = draft
        self.is_needed = is_needed
        self._is_faster: dict[int, bool] = {}  # by number of rows

    def best(self, hidden: Tensor) -> Tensor:
        """The token with the highest logit. [N, H] -> [N] int64"""
        if self.is_needed or self.is_faster(len(hidden)):
            return self.fused.top(hidden).ids[:, 0]
        return self._best_of_logits(hidden)

    def top(self, hidden: Tensor) -> TopK:
        """The k tokens with the highest logits of rows [N, H]."""
        if self.is_needed or self.is_faster(len(hidden)):
            return self.fused.top(hidden)
        return self._top_of_logits(hidden)

    def is_faster(self, num_rows: int) -> bool:
        """Whether the fused head was measured to be, for that many rows or the next number above that was measured."""
        measured = min((n for n in self._is_faster if n >= num_rows), default=max(self._is_faster, default=None))
        return measured is not None and self._is_faster[measured]

    def measure(self, numbers_of_rows: Iterable[int]) -> None:
        """Time both on this GPU for each number of rows."""
        if self.is_needed or not self.fused.weight.is_cuda:
            return
        of_logits = self._best_of_logits if self.fused.k == 1 else self._top_of_logits
        for num_rows in sorted(set(numbers_of_rows)):
            hidden = self.fused.weight.new_zeros(num_rows, self.fused.weight.shape[1])
            ours = median_milliseconds(partial(self.fused.top, hidden))
            theirs = median_milliseconds(partial(of_logits, hidden))
            self._is_faster[num_rows] = ours < theirs
        torch.cuda.empty_cache()  # the timing's own buffers, before vLLM looks at what is free

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile what up to as many rows as the workspace holds can need of the fused head, if it is ever used."""
        if self.is_needed or self.fused.weight.is_cuda:
            self.fused.warm_up(dtype)

    def reload(self) -> None:
        """Take the model's weights again, in place, where CUDA graphs read them."""
        self.fused.reload(self.draft)

    def _best_of_logits(self, hidden: Tensor) -> Tensor:
        best: Tensor = self.draft.compute_logits(hidden).argmax(-1)  # type: ignore[operator]
        return best

    def _top_of_logits(self, hidden: Tensor) -> TopK:
        return top_of_logits(self.draft.compute_logits(hidden), self.fused.k)  # type: ignore[operator]


def top_of_logits(logits: Tensor, k: int) -> TopK:
    """What the fused head gives, from logits [N, V]."""
    logits = logits.float()
    top = logits.topk(min(k, logits.shape[-1]))
    return TopK(ids=top.indices, logits=top.values, log_sum_exps=logits.logsumexp(-1))


def choose_head(
    draft: nn.Module,
    *,
    num_tokens: int,  # tokens that draft and target share
    token_ids: Tensor | None,  # [any] int64 of a trimmed vocabulary
    k: int,
    use_int8: bool,
    max_num_rows: int,
    group: Any,  # of tensor parallelism
) -> GreedyHead | None:
    """What greedy drafts and trees use; None: the model's logits choose, since its lm_head is not a plain matrix."""
    fused = _cut_head(draft, num_tokens, token_ids, k, use_int8, max_num_rows, group)
    if fused is None:
        logger.warning("PARD: the lm_head of %s is not a plain matrix; drafts use its logits", type(draft).__name__)
        return None
    return GreedyHead(fused, draft, is_needed=fused.group is not None or use_int8 or token_ids is not None)


def _cut_head(
    draft: nn.Module, num_tokens: int, token_ids: Tensor | None, k: int, use_int8: bool, max_num_rows: int, group: Any
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
    group = group if lm_head.tp_size > 1 else None
    if len(weight) < (k if group is not None else 1):
        raise ConfigError(
            f'"draft_vocab" has {len(weight) or "no"} token(s) from {start} to {end - 1}, the share of one of '
            f"{lm_head.tp_size} ranks of tensor parallelism, which needs {k}: leave it out, or set "
            '"draft_tensor_parallel_size": 1'
        )
    k = min(k, len(weight))
    weight, weight_scale = quantize_rows(weight) if use_int8 else (weight, None)
    return DraftHead(
        lm_head_rows=rows,
        weight=weight,
        weight_scale=weight_scale,
        bias=bias,
        scale=processor.scale,
        soft_cap=processor.soft_cap or 0.0,
        vocab_start=start if token_ids is None else 0,
        token_ids=token_ids,
        k=k,
        workspace=top_k_workspace(num_rows=max_num_rows, k=k, device=weight.device),
        group=group,
    )


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to 8 bits, symmetric about zero. [V, H] -> [V, H] int8, [V] float32"""
    scale = weight.abs().amax(1).float().clamp(min=torch.finfo(torch.float16).tiny) / 127
    rounded = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for rows in torch.arange(len(weight), device=weight.device).tensor_split(1 + len(weight) // 4096):
        rounded[rows] = (weight[rows] / scale[rows, None]).round().to(torch.int8)
    return rounded, scale
