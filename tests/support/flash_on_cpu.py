"""FlashAttention's backend in vLLM on a CPU: its Python side as on an NVIDIA GPU, its kernels in torch.

Shows that our backend fits what it is built on there: metadata, layout of the cache, graphs. Not FlashAttention itself.
"""

from typing import Any

import torch
from torch import Tensor
from v2_interpreter import use_attention

VERSION = 3  # of FlashAttention


def flash_attn_varlen_func(
    *,
    q: Tensor,  # [D, H, head size]
    k: Tensor,  # [blocks, block size, H of K/V, head size]
    v: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,  # [B + 1]
    seqused_k: Tensor,  # [B]
    block_table: Tensor,  # [B, blocks of a request]
    softmax_scale: float,
    causal: bool,
    window_size: list[int] | None,
    softcap: float,
    **_: Any,
) -> None:
    assert causal
    before, after = window_size or (-1, -1)
    assert after <= 0
    attend(q, k, v, out, cu_seqlens_q, seqused_k, block_table, softmax_scale, softcap, before)


def reshape_and_cache_flash(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, *_: Any
) -> None:
    write(key, key_cache, slot_mapping)
    write(value, value_cache, slot_mapping)


# Operations of their own, so that a graph records each as the one launch that it is on a GPU.
@torch.library.custom_op("flash_on_cpu::attend", mutates_args=("out",))
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    starts: Tensor,
    lengths: Tensor,
    table: Tensor,
    scale: float,
    soft_cap: float,
    before: int,  # how far back a row sees; -1: to the first token
) -> None:
    for req, (start, end) in enumerate(zip(starts.tolist(), starts[1:].tolist(), strict=False)):
        length, group_size = int(lengths[req]), q.shape[1] // k.shape[2]
        keys, values = (
            cache[table[req].long()].flatten(0, 1)[:length].repeat_interleave(group_size, 1) for cache in (k, v)
        )
        scores = torch.einsum("dhs,nhs->hdn", q[start:end], keys) * scale
        scores = soft_cap * torch.tanh(scores / soft_cap) if soft_cap else scores
        back = torch.arange(length - (end - start), length)[:, None] - torch.arange(length)
        is_seen = (back >= 0) & (back <= before) if before >= 0 else back >= 0
        scores = scores.masked_fill(~is_seen, -torch.inf)
        out[start:end] = torch.einsum("hdn,nhs->dhs", scores.softmax(-1), values)


@torch.library.custom_op("flash_on_cpu::write", mutates_args=("cache",))
def write(new: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    is_kept = slot_mapping >= 0
    slots = slot_mapping[is_kept]
    cache[slots // cache.shape[1], slots % cache.shape[1]] = new[: len(slot_mapping)][is_kept]


def use_flash_attention() -> None:
    """For every model, unless it asks for another, and below `CUSTOM`. Imports vLLM."""
    from vllm.v1.attention.backends import flash_attn

    from vllm_pard.serving.attention import backends

    use_attention("FLASH_ATTN")
    flash_attn.get_flash_attn_version = lambda **_: VERSION
    flash_attn.flash_attn_varlen_func = flash_attn_varlen_func
    flash_attn.reshape_and_cache_flash = reshape_and_cache_flash
    flash_attn.get_scheduler_metadata = lambda batch_size, **_: torch.zeros(1 + -(-batch_size // 4) * 4).int()
    backends.best_backend = lambda dtype: backends.PardFlashBackend
