"""Every upstream name that we rely on.

`HOOKS` is checked at run time against the installed vLLM (only when PARD is asked for) and, by
`tests/serving/test_upstream_sources.py`, against the sources of other supported releases without importing them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Hook:
    """An upstream name, in its defining module, and the parameters that we pass or override."""

    module: str
    name: str  # dotted for a member of a class
    parameters: tuple[str, ...] = ()


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
    Hook(module="vllm.v1.worker.cpu_worker", name="CPUWorker.compile_or_warm_up_model"),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.init_device"),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.compile_or_warm_up_model"),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.reload_weights"),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.finish_weight_update"),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.wake_up"),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.execute_model", parameters=("self", "scheduler_output")),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.sample_tokens", parameters=("self", "grammar_output")),
    Hook(module="vllm.v1.outputs", name="AsyncModelRunnerOutput.get_output", parameters=("self",)),
    Hook(module="vllm.config.vllm", name="get_layers_from_vllm_config", parameters=("vllm_config", "layer_type")),
    Hook(module="vllm.model_executor.layers.attention_layer_base", name="AttentionLayerBase.get_attn_backend"),
    Hook(module="vllm.v1.spec_decode.draft_model", name="DraftModelProposer"),
    Hook(
        module="vllm.v1.sample.rejection_sampler",
        name="expand_batch_to_tokens",
        parameters=("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    ),
    Hook(
        module="vllm.v1.spec_decode.llm_base_proposer",
        name="SpecDecodeBaseProposer.set_inputs_first_pass",
        parameters=("self", "target_token_ids", "next_token_ids"),
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
        module="vllm.v1.worker.gpu.spec_decode.speculator",
        name="DraftModelSpeculator.load_draft_model",
        parameters=("self", "target_model", "target_attn_layer_names"),
    ),
    Hook(module="vllm.v1.worker.gpu.spec_decode.speculator", name="DraftModelSpeculator.set_attn"),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.speculator",
        name="DraftModelSpeculator._copy_request_inputs",
        parameters=("self", "num_reqs", "idx_mapping", "temperature", "seeds"),
    ),
    Hook(module="vllm.v1.worker.gpu.spec_decode.speculator", name="DraftModelSpeculator.attn_vllm_config"),
    Hook(
        module="vllm.v1.worker.gpu.attn_utils",
        name="build_attn_metadata",
        parameters=(
            "attn_groups",
            "num_reqs",
            "num_tokens",
            "query_start_loc_gpu",
            "query_start_loc_cpu",
            "max_query_len",
            "seq_lens",
            "max_seq_len",
            "block_tables",
            "slot_mappings",
            "kv_cache_config",
            "seq_lens_cpu_upper_bound",
            "positions",
            "is_prefilling",
            "for_cudagraph_capture",
        ),
    ),
    Hook(module="vllm.compilation.backends", name="set_model_tag"),
    Hook(module="vllm.config", name="set_current_vllm_config"),
    Hook(module="vllm.forward_context", name="BatchDescriptor"),
    Hook(
        module="vllm.forward_context",
        name="set_forward_context",
        parameters=(
            "attn_metadata",
            "vllm_config",
            "num_tokens",
            "num_tokens_across_dp",
            "cudagraph_runtime_mode",
            "batch_descriptor",
            "slot_mapping",
        ),
    ),
    Hook(module="vllm.model_executor.model_loader", name="get_model", parameters=("vllm_config", "prefix")),
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
    Hook(module="vllm.v1.worker.gpu.cudagraph_utils", name="has_compiled_submodule", parameters=("model",)),
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
    Hook(
        module="vllm.v1.attention.selector",
        name="get_attn_backend",
        parameters=("head_size", "dtype", "kv_cache_dtype", "num_heads", "has_sliding_window"),
    ),
    Hook(module="vllm.v1.worker.ubatch_utils", name="UBatchSlice"),
    Hook(
        module="vllm.v1.worker.ubatch_utils",
        name="split_attn_metadata",
        parameters=("ubatch_slices", "common_attn_metadata"),
    ),
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
HOOKS = CONFIG_HOOKS + WORKER_HOOKS + RUNNER_V2_HOOKS
