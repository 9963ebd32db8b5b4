"""Layers of attention backend `CUSTOM`: our kernel for requests with few new rows, the platform's for the rest.

Drafting and verification look alike: a paged prefix that all new rows see, and a few new rows that see one another by a
mask. A step's new keys and values go from the layer straight into the kernel, so that a draft need not write those of
its mask tokens to the cache.

D new rows · H query heads · N slots of a block
"""

from typing import TYPE_CHECKING, Any

import torch
from pard_kernels import speculative_attention, warm_up_attention
from pard_kernels.speculative_attention.launch_shape import MAX_NUM_ROWS
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionType

from vllm_pard.config import ConfigError
from vllm_pard.serving.attention.metadata import NarrowRequests, PardMetadata

# A mixin has no base of its own while it runs; a type checker gives it one that knows nothing.
Base: Any = Any if TYPE_CHECKING else object


class PardAttention(Base):
    """Mixin of an attention layer's implementation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.window = self.sliding_window[0] + 1 if self.sliding_window[0] >= 0 else None
        self.is_fp8 = self.kv_cache_dtype.startswith("fp8")
        if problem := self._problem():
            raise ConfigError(
                f"PARD's own attention can't run this model: {problem}; choose another attention backend than CUSTOM"
            )

    def _problem(self) -> str | None:
        """What the kernel lacks, or None."""
        lacking = {
            "it uses ALiBi": self.alibi_slopes is not None,
            "it has attention sinks": self.sinks is not None,
            "its attention is not that of a decoder": self.attn_type != AttentionType.DECODER,
            "its layers share keys and values": self.kv_sharing_target_layer_name is not None,
            f"its K/V cache is {self.kv_cache_dtype}": self.kv_cache_dtype
            not in ("auto", "float16", "bfloat16", "float32", "fp8", "fp8_e4m3"),
            f"its window of {self.window} is shorter than {MAX_NUM_ROWS} rows": self.window is not None
            and self.window < MAX_NUM_ROWS,
            "its attention looks back by chunks": getattr(self, "chunk_lookback", -1) >= 0,
        }
        return next((problem for problem, is_so in lacking.items() if is_so), None)

    def fused_output_quant_supported(self, quant_key: Any) -> bool:
        return False

    def fused_rope_kvcache_supported(self) -> bool:
        return False  # the kernel reads new keys from the layer, where they must be rotated

    def forward(
        self,
        layer: Any,
        query: Tensor,  # [D, H, head size]
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: PardMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Each part of the batch by its own kernel; without metadata, vLLM's profiling."""
        narrow, wide = (None, None) if attn_metadata is None else (attn_metadata.narrow, attn_metadata.wide)
        if narrow is not None:
            self._forward_narrow(layer, query, key, value, kv_cache, narrow, output)
        if narrow is None or wide is not None:
            first = 0 if narrow is None else narrow.num_rows
            super().forward(
                layer,
                query[first:],
                key[first:],
                value[first:],
                kv_cache,
                wide,
                output[first:],
                output_scale,
                output_block_scale,
            )
        return output

    def _forward_narrow(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        narrow: NarrowRequests,
        output: Tensor,
    ) -> None:
        rows = slice(0, narrow.num_rows)
        speculative_attention(
            query[rows],
            key[rows],
            value[rows],
            *self._caches(kv_cache),
            narrow.block_table,
            narrow.query_start_loc,
            narrow.num_cached,
            max_num_rows=narrow.max_num_rows,
            num_splits=narrow.num_splits,
            ancestor_masks=narrow.ancestor_masks,
            out=output[rows],
            partial=narrow.partial,
            **self._options(layer),
        )

    def warm_up(
        self, layer: Any, dtype: torch.dtype, max_num_splits: int, ancestor_masks: Tensor | None = None
    ) -> None:
        """Compile every variant of our kernel that steps of this layer can need, with masks where it gets any."""
        device = layer.kv_cache.device
        query, key, value = (
            torch.empty(1, heads, self.head_size, dtype=dtype, device=device)
            for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        )
        ints = torch.zeros(2, dtype=torch.int32, device=device)
        warm_up_attention(
            query,
            key,
            value,
            *self._caches(layer.kv_cache),
            ints[None],
            ints,
            ints[:1],
            max_num_rows=MAX_NUM_ROWS,
            max_num_splits=max_num_splits,
            ancestor_masks=ancestor_masks,
            **self._options(layer),
        )

    def _caches(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, [blocks, N, H of K/V, head size] each."""
        key_cache, value_cache = kv_cache.transpose(1, 2).tensor_split(2, dim=-1)
        if not self.is_fp8:
            return key_cache, value_cache
        fp8_dtype = current_platform.fp8_dtype()
        return key_cache.view(fp8_dtype), value_cache.view(fp8_dtype)

    def _options(self, layer: Any) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "soft_cap": self.logits_soft_cap,
            "window": self.window,
            "key_scale": layer._k_scale if self.is_fp8 else None,
            "value_scale": layer._v_scale if self.is_fp8 else None,
        }


class PardBackend:
    """Mixin of a backend: what the platform's may do and our kernel does not, so that vLLM refuses it by name."""

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    supports_kv_cache_update_bypass = False  # new keys and values come with the call

    @classmethod
    def _cannot(cls) -> bool:
        return False

    supports_sink = supports_alibi_sqrt = supports_mm_prefix = supports_rswa = _cannot
    supports_non_causal = supports_batch_invariance = supports_per_head_quant_scales = _cannot
