"""`CUSTOM` among vLLM's attention backends, on top of what the platform runs best.

`--attention-backend CUSTOM` gives it to the target, `"attention_backend": "CUSTOM"` in the speculative config to the
draft. Which one it is built on is decided when it is registered.
"""

from typing import Any

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
from vllm_pard.serving.attention.metadata import PardMetadataBuilder


class PardTritonBuilder(PardMetadataBuilder, TritonAttentionMetadataBuilder):
    pass


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


class PardFlashBuilder(PardMetadataBuilder, FlashAttentionMetadataBuilder):
    pass


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


def best_backend() -> type[PardTritonBackend] | type[PardFlashBackend]:
    """FlashAttention on NVIDIA GPUs that have it, Triton attention elsewhere."""
    has_flash_attention = current_platform.is_cuda() and get_flash_attn_version() is not None
    return PardFlashBackend if has_flash_attention else PardTritonBackend


def register() -> None:
    """Make CUSTOM mean ours, unless someone else's was registered before."""
    backend = AttentionBackendEnum.CUSTOM
    if not backend.is_overridden():
        chosen = best_backend()
        register_backend(backend, f"{chosen.__module__}.{chosen.__qualname__}")


def is_ours(layer: Any) -> bool:
    """Whether an attention layer of a loaded model runs on this backend."""
    return isinstance(layer.impl, PardAttention)
