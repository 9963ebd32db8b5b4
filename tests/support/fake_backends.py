"""Attention backends that PARD has not met: like FlashInfer's, which takes wide requests for prefills."""

from typing import Any

import torch
from v2_interpreter import use_attention
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend, TritonAttentionMetadataBuilder


class FrozenBuilder(TritonAttentionMetadataBuilder):
    """Captures the lengths of the capture, and claims a refresh that does nothing."""

    supports_draft_decode_metadata_update = True

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Any:
        metadata = super().build_for_cudagraph_capture(common_attn_metadata)
        metadata.seq_lens = metadata.seq_lens.clone()
        return metadata

    def update_draft_decode_metadata(self, metadata: Any) -> None:
        pass


class LyingBuilder(TritonAttentionMetadataBuilder):
    """A `build` puts right what a replay reads, as vLLM's contract wants; the refresh does nothing."""

    supports_draft_decode_metadata_update = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lengths = torch.zeros(self.vllm_config.scheduler_config.max_num_seqs, dtype=torch.int32)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        lengths = self.lengths[: len(metadata.seq_lens)]
        metadata.seq_lens = lengths.copy_(metadata.seq_lens)
        return metadata

    def update_draft_decode_metadata(self, metadata: Any) -> None:
        pass


class ThresholdBuilder(FrozenBuilder):
    """Requests of more than 1 + K rows are prefills, whose lengths a graph keeps as they were."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._init_reorder_batch_threshold(1, supports_spec_as_decode=True)


class LyingBackend(TritonAttentionBackend):
    @staticmethod
    def get_name() -> str:
        return "FLASHINFER"

    @staticmethod
    def get_builder_cls() -> type[LyingBuilder]:
        return LyingBuilder


class ThresholdBackend(TritonAttentionBackend):
    @staticmethod
    def get_name() -> str:
        return "FLASHINFER"

    @staticmethod
    def get_builder_cls() -> type[ThresholdBuilder]:
        return ThresholdBuilder


def use(backend: str) -> None:
    """For every model that asks for no other."""
    register_backend(AttentionBackendEnum.FLASHINFER, f"{__name__}.{backend}")
    use_attention("FLASHINFER")
