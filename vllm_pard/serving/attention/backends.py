"""`CUSTOM` among vLLM's attention backends, on top of what the platform runs best.

`--attention-backend CUSTOM` gives it to the target, `"attention_backend": "CUSTOM"` in the speculative config to the
draft. Which one it is built on is decided when it is registered.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pard_kernels import choose_num_splits
from vllm.platforms import current_platform
from vllm.v1.attention.backends.fa_utils import get_flash_attn_version
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from vllm_pard.serving.attention.layer import PardAttention, PardBackend
from vllm_pard.serving.attention.metadata import PardMetadataBuilder, num_multiprocessors


class PardTritonBuilder(PardMetadataBuilder):
    platform_builder = TritonAttentionMetadataBuilder


class PardTritonImpl(PardAttention, TritonAttentionImpl):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.supports_quant_query_input = False  # both kernels read the query as it is, whatever the cache holds


class PardTritonBackend(PardBackend, TritonAttentionBackend):
    """Our kernel between prefills, Triton attention for prefills."""

    @staticmethod
    def get_impl_cls() -> type[PardTritonImpl]:
        return PardTritonImpl

    @staticmethod
    def get_builder_cls() -> type[PardTritonBuilder]:
        return PardTritonBuilder


class PardFlashBuilder(PardMetadataBuilder):
    platform_builder = FlashAttentionMetadataBuilder


class PardFlashImpl(PardAttention, FlashAttentionImpl):
    def _problem(self) -> str | None:
        # FlashAttention wants its queries in FP8 as well, and our kernel wants them as they are.
        return super()._problem() or (f"its K/V cache is {self.kv_cache_dtype}" if self.is_fp8 else None)


class PardFlashBackend(PardBackend, FlashAttentionBackend):
    """Our kernel between prefills, FlashAttention for prefills."""

    @staticmethod
    def get_impl_cls() -> type[PardFlashImpl]:
        return PardFlashImpl

    @staticmethod
    def get_builder_cls() -> type[PardFlashBuilder]:
        return PardFlashBuilder


def best_backend(dtype: torch.dtype) -> type[PardTritonBackend] | type[PardFlashBackend]:
    """FlashAttention on NVIDIA GPUs that have it, Triton attention elsewhere and for what that can't take: float32."""
    has_flash_attention = current_platform.is_cuda() and get_flash_attn_version() is not None
    is_taken = has_flash_attention and FlashAttentionBackend.supports_dtype(dtype)
    return PardFlashBackend if is_taken else PardTritonBackend


def register(dtype: torch.dtype) -> None:
    """Make CUSTOM mean ours for a model of this dtype, unless someone else's was registered before."""
    backend = AttentionBackendEnum.CUSTOM
    if not backend.is_overridden() or backend.get_path().startswith(__name__):
        chosen = best_backend(dtype)
        register_backend(backend, f"{chosen.__module__}.{chosen.__qualname__}")


def warm_up(vllm_config: Any, dtype: torch.dtype, masks: Mapping[str, torch.Tensor]) -> None:
    """Compile what the engine's layers on this backend can need, of target and draft; layers alike compile it once.

    `masks` are those of layers that verify trees, by name.
    """
    layers = vllm_config.compilation_config.static_forward_context.items()
    for name, layer in ((name, layer) for name, layer in layers if is_ours(layer)):
        impl = layer.impl
        max_num_splits = choose_num_splits(
            num_requests=1,
            num_rows=1,
            num_heads=impl.num_heads,
            num_kv_heads=impl.num_kv_heads,
            head_size=impl.head_size,
            dtype=dtype,
            max_num_cached=vllm_config.model_config.max_model_len,
            num_multiprocessors=num_multiprocessors(layer.kv_cache.device),
        )
        impl.warm_up(layer, dtype, max_num_splits, masks.get(name))


def is_ours(layer: Any) -> bool:
    """Whether an attention layer of a loaded model runs on this backend."""
    return isinstance(getattr(layer, "impl", None), PardAttention)
