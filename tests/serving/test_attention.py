"""The backend's parts without an engine: what a CUDA graph relies on, and both platforms' layers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pard_kernels import reference
from vllm.config.compilation import CompilationConfig, CUDAGraphMode
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.attention.backends.flash_attn import FlashAttentionMetadataBuilder

from vllm_pard.config import ConfigError
from vllm_pard.serving.attention import backends, metadata
from vllm_pard.serving.attention.backends import PardFlashBackend, PardFlashImpl, PardTritonBackend, PardTritonImpl
from vllm_pard.serving.attention.metadata import MAX_NUM_ROWS, NarrowRequests, PardMetadata, PardMetadataBuilder

HEADS, KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 4, 2, 64, 16
CONFIG = SimpleNamespace(
    model_config=SimpleNamespace(dtype=torch.float32),
    scheduler_config=SimpleNamespace(max_num_seqs=8),
    speculative_config=SimpleNamespace(enable_adaptive_verification=False),
)


class PlatformBuilder:
    """What the mixin builds on: metadata of the step's own tensors, as FlashAttention's builder makes it."""

    num_heads_q = HEADS
    supports_draft_decode_metadata_update = True

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        self.kv_cache_spec, self.device = kv_cache_spec, device
        self.built: list[CommonAttentionMetadata] = []
        self.fast_builds: list[bool] = []

    def build(self, common_prefix_len: int, common: CommonAttentionMetadata, fast_build: bool = False) -> Any:
        self.built.append(common)
        self.fast_builds.append(fast_build)
        return SimpleNamespace(common=common, updated=False)

    def build_for_cudagraph_capture(self, common: CommonAttentionMetadata) -> str:
        return "the platform's"

    def update_draft_decode_metadata(self, metadata: Any) -> None:
        metadata.updated = True


class Builder(PardMetadataBuilder):
    platform_builder = PlatformBuilder


def make_builder(config: Any = CONFIG) -> Builder:
    return Builder(SimpleNamespace(num_kv_heads=KV_HEADS, head_size=HEAD_SIZE), [], config, torch.device("cpu"))


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    monkeypatch.setattr(metadata, "num_multiprocessors", lambda device: 64)  # enough to split the prefix for
    return make_builder()


def common(rows: list[int], cached: list[int], max_seq_len: int = 4096) -> CommonAttentionMetadata:
    starts = torch.tensor([0, *rows]).cumsum(0).int()
    seq_lens = torch.tensor(rows).int() + torch.tensor(cached).int()
    return CommonAttentionMetadata(
        num_reqs=len(rows),
        num_actual_tokens=sum(rows),
        max_query_len=max(rows),
        max_seq_len=max_seq_len,
        query_start_loc=starts,
        query_start_loc_cpu=starts.clone(),
        seq_lens=seq_lens,
        seq_lens_cpu_upper_bound=seq_lens.clone(),
        block_table_tensor=torch.arange(len(rows) * 4).view(-1, 4).int(),
        slot_mapping=torch.arange(sum(rows)),
    )


def test_metadata_stays_where_a_graph_reads_it(builder: Builder) -> None:
    captured = builder.build_for_cudagraph_capture(common([8, 8], [0, 0]))
    assert captured.narrow.num_cached.tolist() == [0, 0]
    assert captured.narrow.num_splits > 1
    builder.build(0, common([6, 8, 3], [40, 41, 7]))
    assert captured.narrow.num_cached.tolist() == [40, 41], "a step's build refreshes the same tensor"
    captured.narrow.seq_lens.copy_(torch.tensor([18, 28]))
    builder.update_draft_decode_metadata(captured)
    assert captured.narrow.num_cached.tolist() == [10, 20]


def test_workspaces_are_shared_and_never_freed(builder: Builder) -> None:
    first = builder._workspace(4, 30)
    again = builder._workspace(2, 40)
    assert first.output.data_ptr() == again.output.data_ptr()
    assert again.output.shape == (2, 40, HEADS, HEAD_SIZE)
    assert again.log_sum_exp.shape == (2, 40, HEADS)
    larger = builder._workspace(16, 200)
    assert larger.output.data_ptr() != first.output.data_ptr()
    assert len({flat.output.data_ptr() for flat in builder.workspaces}) == len(builder.workspaces) >= 2


def test_wide_steps_are_the_platforms(builder: Builder) -> None:
    wide = common([MAX_NUM_ROWS + 1, MAX_NUM_ROWS + 1], [0, 5])
    built = builder.build(0, wide)
    assert built.narrow is None
    assert built.wide.common is wide
    builder.update_draft_decode_metadata(built)
    assert built.wide.updated
    assert builder.build_for_cudagraph_capture(wide) == PardMetadata(narrow=None, wide="the platform's")


def test_each_request_by_its_own_kernel(builder: Builder) -> None:
    """A chunk of a prompt does not take the decodes before it along; what follows it may be narrow again."""
    built = builder.build(0, common([5, 8, 70, 3], [40, 41, 0, 7]))
    narrow, wide = built.narrow, built.wide.common
    assert (narrow.num_rows, narrow.max_num_rows) == (13, 8)
    assert narrow.num_cached.tolist() == [40, 41]
    assert narrow.block_table.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert wide.query_start_loc.tolist() == wide.query_start_loc_cpu.tolist() == [0, 70, 73]
    assert wide.seq_lens.tolist() == [70, 10]
    assert wide.block_table_tensor.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert wide.slot_mapping.tolist() == list(range(13, 86))


def test_nothing_is_built_in_a_hurry(builder: Builder) -> None:
    """FlashAttention's first fast build would fix its window, and a fast one has no schedule for a replay to read."""
    for rows in ([5, 8], [70, 3], [5, 70]):
        builder.build(0, common(rows, [0, 0]))
    assert builder.platform.fast_builds == [False, False]


def test_full_graphs_are_of_decodes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """With FlashAttention 3 alone, vLLM would capture whole mixed batches, and replay them on what a build left."""
    monkeypatch.setattr(FlashAttentionMetadataBuilder, "_cudagraph_support", AttentionCGSupport.ALWAYS)
    modes = []
    for builder_cls in (FlashAttentionMetadataBuilder, PardFlashBackend.get_builder_cls()):
        config = CompilationConfig(cudagraph_mode=CUDAGraphMode.FULL, cudagraph_capture_sizes=[9, 18])
        support = builder_cls.get_cudagraph_support(None, None)
        mode = config.resolve_cudagraph_mode_and_sizes(support, "CUSTOM", 9, use_v2_model_runner=True)
        modes.append((mode.decode_mode(), mode.mixed_mode()))
    assert modes[0] == (CUDAGraphMode.FULL, CUDAGraphMode.FULL)
    assert modes[1][0] == CUDAGraphMode.FULL
    assert modes[1][1] != CUDAGraphMode.FULL


def test_rows_that_only_the_device_counts_are_not_split() -> None:
    adaptive = SimpleNamespace(
        **{**vars(CONFIG), "speculative_config": SimpleNamespace(enable_adaptive_verification=True)}
    )
    builder = make_builder(adaptive)
    assert builder.build(0, common([5, 70], [0, 0])).narrow is None
    assert builder.build(0, common([5, 8], [0, 0])).wide is None


def make_impl(cls: type[Any], **changes: Any) -> Any:
    """A layer's implementation without the engine's config around it."""
    impl = cls.__new__(cls)
    attributes = {
        "scale": 0.125,
        "sliding_window": (-1, -1),
        "logits_soft_cap": 0.0,
        "kv_cache_dtype": "auto",
        "alibi_slopes": None,
        "sinks": None,
        "attn_type": "decoder",
        "kv_sharing_target_layer_name": None,
        "window": None,
        "is_fp8": False,
    }
    for name, value in (attributes | changes).items():
        setattr(impl, name, value)
    return impl


@pytest.mark.parametrize("cls", [PardTritonImpl, PardFlashImpl])
def test_both_read_the_cache_as_their_platform_lays_it_out(cls: type[Any]) -> None:
    torch.manual_seed(0)
    rows, cached = [5, 3], [37, 0]
    query, key, value = (torch.randn(8, heads, HEAD_SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS))
    kv_cache = torch.randn(6, KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
    step = common(rows, cached)
    narrow = NarrowRequests(
        num_rows=8,
        max_num_rows=5,
        block_table=torch.tensor([[3, 1, 4, 0], [2, 0, 0, 0]], dtype=torch.int32),
        query_start_loc=step.query_start_loc,
        seq_lens=step.seq_lens,
        num_cached=torch.tensor(cached, dtype=torch.int32),
        num_splits=1,
        partial=None,
    )
    output = torch.full((12, HEADS, HEAD_SIZE), -7.0)
    padded = (torch.cat([part, part[:4]]) for part in (query, key, value))
    make_impl(cls).forward(None, *padded, kv_cache, PardMetadata(narrow=narrow, wide=None), output)
    expected = reference.speculative_attention(
        query, key, value,
        kv_cache[..., :HEAD_SIZE].transpose(1, 2), kv_cache[..., HEAD_SIZE:].transpose(1, 2),
        narrow.block_table, narrow.query_start_loc, narrow.num_cached,
        scale=0.125, max_num_rows=5, num_splits=1,
    )  # fmt: skip
    torch.testing.assert_close(output[:8], expected, atol=1e-5, rtol=1e-5)
    assert (output[8:] == -7).all(), "rows of padding are left alone"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"alibi_slopes": [1.0]}, "it uses ALiBi"),
        ({"sinks": torch.zeros(4)}, "it has attention sinks"),
        ({"attn_type": "encoder"}, "not that of a decoder"),
        ({"kv_sharing_target_layer_name": "layers.0"}, "share keys and values"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "its K/V cache is fp8_e5m2"),
        ({"window": 63}, "its window of 63 is shorter than 64 rows"),
        ({"chunk_lookback": 2}, "looks back by chunks"),
    ],
)
def test_what_the_kernel_lacks(changes: dict[str, Any], problem: str) -> None:
    assert problem in str(make_impl(PardTritonImpl, **changes)._problem())
    assert make_impl(PardTritonImpl)._problem() is None


def test_refusal_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        vars(self).update(vars(make_impl(PardTritonImpl, sinks=torch.zeros(4))))

    monkeypatch.setattr(PardTritonImpl.__mro__[2], "__init__", init)
    with pytest.raises(ConfigError, match="can't run this model: it has attention sinks; choose another"):
        PardTritonImpl()


@pytest.mark.parametrize("backend", [PardTritonBackend, PardFlashBackend])
def test_what_only_the_platform_can_is_refused_by_vllm(backend: type[Any]) -> None:
    asked = (
        backend.supports_sink,
        backend.supports_alibi_sqrt,
        backend.supports_mm_prefix,
        backend.supports_rswa,
        backend.supports_non_causal,
        backend.supports_per_head_quant_scales,
        backend.supports_batch_invariance,
    )
    assert not any(supports() for supports in asked)
    assert backend.get_name() == "CUSTOM"
    impl = make_impl(backend.get_impl_cls())
    assert not impl.fused_output_quant_supported(object())
    assert not impl.fused_rope_kvcache_supported()


def test_flash_attention_wants_its_own_queries_for_an_fp8_cache() -> None:
    fp8 = {"kv_cache_dtype": "fp8", "is_fp8": True}
    assert make_impl(PardTritonImpl, **fp8)._problem() is None
    assert make_impl(PardFlashImpl, **fp8)._problem() == "its K/V cache is fp8"


@pytest.mark.parametrize(
    ("dtype", "version", "chosen"),
    [
        (torch.bfloat16, 3, PardFlashBackend),
        (torch.float32, 3, PardTritonBackend),  # as vLLM does
        (torch.bfloat16, None, PardTritonBackend),
    ],
)
def test_what_custom_is_built_on(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, version: int | None, chosen: type
) -> None:
    monkeypatch.setattr(backends, "current_platform", SimpleNamespace(is_cuda=lambda: True))
    monkeypatch.setattr(backends, "get_flash_attn_version", lambda: version)
    assert backends.best_backend(dtype) is chosen
