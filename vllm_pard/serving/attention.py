"""PARD's attention backend: our kernel where a step has few rows a request, the platform's own attention elsewhere.

Drafting and verification look alike: a paged prefix that all new rows see, and a few new rows that see one another by a
mask. A step's new keys and values go from the layer straight into the kernel, so that a draft need not write those of
its mask tokens to the cache.

B requests · D new rows · H query heads · N slots of a block
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pard_kernels import Workspace, choose_num_splits, speculative_attention, workspace
from pard_kernels.speculative_attention.launch_shape import MAX_NUM_ROWS, power_of_two
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata

from vllm_pard.config import ConfigError

# Mixins have no base of their own while they run; a type checker gives them one that knows nothing.
Base: Any = Any if TYPE_CHECKING else object

# Where there is no GPU, only tests run the kernel: one that splits.
NUM_MULTIPROCESSORS_OF_TESTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PardStep:
    """What the layers of a step share, if our kernel takes it: an attribute `pard` of the platform's metadata."""

    num_cached: Tensor  # [B] int32
    num_splits: int
    partial: Workspace | None


class PardMetadataBuilder(Base):
    """Mixin of a metadata builder: decides by the number of rows, once a step."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.query_dtype = vllm_config.model_config.dtype
        self.num_multiprocessors = (
            torch.cuda.get_device_properties(device).multi_processor_count
            if device.type == "cuda"
            else NUM_MULTIPROCESSORS_OF_TESTS
        )
        # Both outlive a step, since CUDA graphs read them: layers and steps that share them run one after another.
        self.num_cached = torch.zeros(vllm_config.scheduler_config.max_num_seqs, dtype=torch.int32, device=device)
        self.workspaces: list[Workspace] = []

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Any:
        is_ours = takes(common_attn_metadata.max_query_len)
        # `fast_build`: no schedule for a kernel that will not run.
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build or is_ours)
        if not is_ours:
            return metadata
        num_splits = choose_num_splits(
            num_requests=common_attn_metadata.num_reqs,
            num_rows=metadata.max_query_len,
            num_heads=self.num_heads_q,
            num_kv_heads=self.kv_cache_spec.num_kv_heads,
            head_size=self.kv_cache_spec.head_size,
            dtype=self.query_dtype,
            max_num_cached=metadata.max_seq_len,
            num_multiprocessors=self.num_multiprocessors,
        )
        metadata.pard = PardStep(
            num_cached=self.num_cached[: common_attn_metadata.num_reqs],
            num_splits=num_splits,
            partial=self._workspace(num_splits, metadata.num_actual_tokens) if num_splits > 1 else None,
        )
        _refresh(metadata)
        return metadata

    def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> Any:
        if takes(common_attn_metadata.max_query_len):
            return self.build(0, common_attn_metadata)
        return super().build_for_cudagraph_capture(common_attn_metadata)

    def update_draft_decode_metadata(self, metadata: Any) -> None:
        """Refresh what depends on the step, on the device; a CUDA graph holds this ahead of the forward."""
        if hasattr(metadata, "pard"):
            _refresh(metadata)
        else:
            super().update_draft_decode_metadata(metadata)

    def _workspace(self, num_splits: int, num_rows: int) -> Workspace:
        """A view of memory that is large enough; none is ever freed, since a captured graph may write to it."""
        shape, head_size = (num_splits, num_rows, self.num_heads_q), self.kv_cache_spec.head_size
        size = math.prod(shape)
        flat = next((flat for flat in self.workspaces if flat.log_sum_exp.numel() >= size), None)
        if flat is None:
            flat = workspace(1, power_of_two(size), 1, head_size, self.device)
            self.workspaces.append(flat)
        return Workspace(
            output=flat.output.view(-1, head_size)[:size].view(*shape, head_size),
            log_sum_exp=flat.log_sum_exp.view(-1)[:size].view(shape),
        )


class PardAttention(Base):
    """Mixin of an attention layer's implementation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.window = self.sliding_window[0] + 1 if self.sliding_window[0] >= 0 else None
        self.is_fp8 = self.kv_cache_dtype.startswith("fp8")
        if problem := self._problem():
            raise ConfigError(
                f"PARD's own attention can't run this model: {problem}; leave CUSTOM out of the attention backends"
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
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        step = getattr(attn_metadata, "pard", None)
        if step is None:
            result: Tensor = super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )
            return result
        num_rows = attn_metadata.num_actual_tokens
        key_cache, value_cache = kv_cache.transpose(1, 2).tensor_split(2, dim=-1)  # [blocks, N, H of K/V, head size]
        if self.is_fp8:
            key_cache, value_cache = (cache.view(current_platform.fp8_dtype()) for cache in (key_cache, value_cache))
        speculative_attention(
            query[:num_rows],
            key[:num_rows],
            value[:num_rows],
            key_cache,
            value_cache,
            attn_metadata.block_table,
            attn_metadata.query_start_loc,
            step.num_cached,
            scale=self.scale,
            max_num_rows=attn_metadata.max_query_len,
            num_splits=step.num_splits,
            soft_cap=self.logits_soft_cap,
            window=self.window,
            key_scale=layer._k_scale if self.is_fp8 else None,
            value_scale=layer._v_scale if self.is_fp8 else None,
            out=output[:num_rows],
            partial=step.partial,
        )
        return output


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


def takes(max_query_len: int) -> bool:
    """Whether our kernel takes a step: one bit of a mask for each new row."""
    return max_query_len <= MAX_NUM_ROWS


def _refresh(metadata: Any) -> None:
    starts = metadata.query_start_loc
    torch.sub(metadata.seq_lens, starts[1:] - starts[:-1], out=metadata.pard.num_cached)
