"""Which vLLM we work with: the supported range, and every upstream name that we rely on.

`HOOKS` is checked at run time against the installed vLLM (only when PARD is asked for) and, by
`tests/serving/test_upstream_sources.py`, against the sources of other supported releases without importing them.
"""

import importlib
import inspect
import os
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from vllm_pard.config import ConfigError
from vllm_pard.serving.hook import Hook
from vllm_pard.serving.v1_hooks import RUNNER_V1_HOOKS

ALLOW_UNTESTED = "VLLM_PARD_ALLOW_UNTESTED"
UPSTREAM_ALTERNATIVE = '{"method": "draft_model", "parallel_drafting": true}'


CONFIG_HOOKS = (
    Hook(
        module="vllm.engine.arg_utils",
        name="EngineArgs.create_speculative_config",
        parameters=("self", "target_model_config", "target_parallel_config"),
    ),
    Hook(module="vllm.config.utils", name="config"),
    Hook(module="vllm.config.utils", name="replace"),
    Hook(module="vllm.config.speculative", name="SpeculativeConfig.verify_equal_vocab_size_if_draft_model"),
    Hook(module="vllm.config.speculative", name="SpeculativeConfig.max_num_new_slots_for_drafting"),
    Hook(module="vllm.config.vllm", name="VllmConfig.num_lookahead_tokens"),
    Hook(module="vllm.logger", name="init_logger", parameters=("name",)),
    Hook(module="vllm.triton_utils.importing", name="HAS_TRITON"),
)

WORKER_HOOKS = (
    Hook(module="vllm.v1.worker.cpu_worker", name="CPUWorker.init_device"),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.init_device"),
    Hook(module="vllm.v1.spec_decode.draft_model", name="DraftModelProposer"),
    Hook(
        module="vllm.v1.sample.rejection_sampler",
        name="expand_batch_to_tokens",
        parameters=("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    ),
)

V2_HOOKS = (
    Hook(module="vllm.distributed.parallel_state", name="_TP"),
    Hook(module="vllm.distributed.parallel_state", name="get_tp_group"),
    Hook(module="vllm.distributed.parallel_state", name="get_world_group"),
    Hook(
        module="vllm.distributed.parallel_state",
        name="init_model_parallel_group",
        parameters=("group_ranks", "local_rank", "backend", "group_name"),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.speculator",
        name="BaseSpeculator.propose",
        parameters=(
            "self",
            "input_batch",
            "attn_metadata",
            "slot_mappings",
            "last_hidden_states",
            "aux_hidden_states",
            "num_sampled",
            "num_rejected",
            "last_sampled",
            "next_prefill_tokens",
            "temperature",
            "seeds",
            "dp_sync_state",
            "dummy_run",
            "skip_attn_for_dummy_run",
            "mm_inputs",
            "is_profile",
            "num_speculative_tokens",
        ),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.speculator",
        name="DraftModelSpeculator._build_attn_metadata",
        parameters=(
            "self",
            "num_reqs",
            "batch_desc",
            "query_start_loc_np",
            "seq_lens_cpu_upper_bound",
            "step",
            "slot_mappings",
        ),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.speculator",
        name="DraftModelSpeculator._copy_request_inputs",
        parameters=("self", "num_reqs", "idx_mapping", "temperature", "seeds", "dummy_run"),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.speculator",
        name="DraftModelSpeculator.sample_draft",
        parameters=(
            "self",
            "hidden_states",
            "sample_src_positions",
            "idx_mapping",
            "temperature",
            "seeds",
            "draft_step",
            "draft_logits",
        ),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.speculator",
        name="DraftModelSpeculator.compute_draft_logits",
        parameters=("self", "hidden_states", "spec_step_idx"),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator",
        name="StandaloneARSpeculator.load_draft_model",
        parameters=("self", "target_model", "target_attn_layer_names"),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator",
        name="StandaloneARSpeculator._run_model",
        parameters=("self", "input_ids", "positions", "attn_metadata", "slot_mappings", "num_tokens_across_dp"),
    ),
    Hook(
        module="vllm.v1.worker.gpu.attn_utils",
        name="build_slot_mappings_by_layer",
        parameters=("slot_mappings", "kv_cache_config"),
    ),
    Hook(module="vllm.utils.torch_utils", name="async_tensor_h2d", parameters=("data", "device", "dtype", "out")),
    Hook(module="vllm.v1.worker.gpu.cudagraph_utils", name="BatchExecutionDescriptor"),
    Hook(module="vllm.v1.worker.gpu.block_table", name="BlockTables"),
    Hook(module="vllm.v1.worker.gpu.input_batch", name="InputBatch"),
    Hook(module="vllm.v1.worker.gpu.states", name="RequestState"),
    Hook(module="vllm.v1.worker.gpu.spec_decode", name="init_speculator"),
    Hook(module="vllm.config.compilation", name="CUDAGraphMode"),
)

GRAPH_HOOKS = (
    Hook(module="vllm.v1.attention.backend", name="AttentionCGSupport"),
    Hook(
        module="vllm.v1.spec_decode.dynamic.utils",
        name="build_dynamic_sd_schedule_lookup",
        parameters=("num_speculative_tokens_per_batch_size", "vllm_max_batch_size", "vllm_num_speculative_tokens"),
    ),
    Hook(module="vllm.v1.worker.gpu.cudagraph_utils", name="CudaGraphManager._init_candidates", parameters=("self",)),
    Hook(module="vllm.v1.worker.gpu.cudagraph_utils", name="CudaGraphManager.needs_capture"),
    Hook(module="vllm.v1.worker.gpu.cudagraph_utils", name="CudaGraphManager.run_fullgraph", parameters=("desc",)),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.dflash.cudagraph",
        name="DFlashCudaGraphManager.capture",
        parameters=(
            "self",
            "forward_fn",
            "input_buffers",
            "block_tables",
            "attn_groups",
            "kv_cache_config",
            "max_model_len",
            "causal",
            "prepare_forward",
            "progress_bar_desc",
        ),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.speculator",
        name="DraftModelSpeculator._update_draft_decode_metadata",
        parameters=("self", "attn_metadata", "num_reqs"),
    ),
    Hook(
        module="vllm.v1.attention.backends.triton_attn",
        name="TritonAttentionMetadataBuilder.update_draft_decode_metadata",
    ),
    Hook(
        module="vllm.v1.attention.backends.triton_attn",
        name="TritonAttentionMetadataBuilder.build_for_cudagraph_capture",
        parameters=("self", "common_attn_metadata"),
    ),
)

HEAD_HOOKS = (
    Hook(module="vllm.model_executor.layers.linear", name="UnquantizedLinearMethod"),
    Hook(module="vllm.model_executor.layers.logits_processor", name="LogitsProcessor"),
    Hook(module="vllm.model_executor.layers.vocab_parallel_embedding", name="UnquantizedEmbeddingMethod"),
)

ATTENTION_HOOKS = (
    Hook(module="vllm.v1.attention.backend", name="AttentionType"),
    Hook(module="vllm.v1.attention.backend", name="CommonAttentionMetadata"),
    Hook(module="vllm.v1.attention.backends.registry", name="AttentionBackendEnum.is_overridden"),
    Hook(module="vllm.v1.attention.backends.registry", name="register_backend", parameters=("backend", "class_path")),
    Hook(module="vllm.v1.attention.backends.triton_attn", name="TritonAttentionBackend.get_impl_cls"),
    Hook(module="vllm.v1.attention.backends.triton_attn", name="TritonAttentionBackend.get_builder_cls"),
    Hook(module="vllm.v1.attention.backends.fa_utils", name="get_flash_attn_version"),
    Hook(module="vllm.v1.attention.backends.flash_attn", name="FlashAttentionBackend.get_impl_cls"),
    Hook(module="vllm.v1.attention.backends.flash_attn", name="FlashAttentionBackend.get_builder_cls"),
    Hook(module="vllm.v1.attention.backends.flash_attn", name="FlashAttentionMetadata"),
    Hook(module="vllm.v1.attention.backends.flash_attn", name="FlashAttentionMetadataBuilder.build"),
    Hook(module="vllm.v1.attention.backends.flash_attn", name="FlashAttentionImpl.forward"),
    Hook(module="vllm.v1.attention.backends.triton_attn", name="TritonAttentionMetadata"),
    Hook(
        module="vllm.v1.attention.backends.triton_attn",
        name="TritonAttentionMetadataBuilder.build",
        parameters=("self", "common_prefix_len", "common_attn_metadata", "fast_build"),
    ),
    Hook(
        module="vllm.v1.attention.backends.triton_attn",
        name="TritonAttentionImpl.forward",
        parameters=(
            "self",
            "layer",
            "query",
            "key",
            "value",
            "kv_cache",
            "attn_metadata",
            "output",
            "output_scale",
            "output_block_scale",
        ),
    ),
)

RUNNER_V2_HOOKS = V2_HOOKS + GRAPH_HOOKS + HEAD_HOOKS + ATTENTION_HOOKS
HOOKS = CONFIG_HOOKS + WORKER_HOOKS + RUNNER_V1_HOOKS + RUNNER_V2_HOOKS


def supported_range() -> Requirement:
    """The `cuda` extra of our own metadata: the one place where the range is written."""
    wanted = (Requirement(line) for line in metadata.requires("vllm-pard") or [])
    return next(requirement for requirement in wanted if requirement.name == "vllm")


def unsupported_reason(version: str | None = None) -> str | None:
    """One sentence if `version` (default: the installed vLLM) is outside the supported range, else None."""
    if version is None:
        import vllm

        version = vllm.__version__
    specifier = supported_range().specifier
    if specifier.contains(version, prereleases=True) or os.environ.get(ALLOW_UNTESTED) == "1":
        return None
    return (
        f"vllm_pard {metadata.version('vllm-pard')} supports vLLM {specifier} and found {version}; "
        f"set {ALLOW_UNTESTED}=1 to try anyway, or use {UPSTREAM_ALTERNATIVE}"
    )


def check_hooks(hooks: tuple[Hook, ...]) -> None:
    """Raise ConfigError if the installed vLLM lacks a hook or has changed its parameters."""
    for hook in hooks:
        try:
            found = _resolve(hook)
        except (ImportError, AttributeError) as error:
            raise ConfigError(_changed(hook, f"it is gone ({error})")) from None
        if not hook.parameters:
            continue
        parameters = tuple(inspect.signature(found).parameters)
        if missing := [name for name in hook.parameters if name not in parameters]:
            raise ConfigError(_changed(hook, f"it no longer takes {', '.join(missing)}"))


def _resolve(hook: Hook) -> Any:
    found: Any = importlib.import_module(hook.module)
    for part in hook.name.split("."):
        found = getattr(found, part)
    return found


def _changed(hook: Hook, what: str) -> str:
    import vllm

    return (
        f"vllm_pard relies on vLLM's {hook.module}.{hook.name}, but in vLLM {vllm.__version__} {what}; "
        f"update vllm_pard, or use {UPSTREAM_ALTERNATIVE}"
    )
