"""What we rely on in vLLM where drafts are trees: a model's own state, and the rejection sampler from inside."""

from vllm_pard.serving.hooks.hook import Hook

STATE = "vllm.v1.worker.gpu.model_states"

TREE_HOOKS = (
    Hook(module=STATE, name="resolve_model_state_cls", parameters=("vllm_config", "model")),
    Hook(
        module=f"{STATE}.interface",
        name="ModelState.initialize_kv_cache",
        parameters=("self", "kv_cache_config", "block_tables"),
    ),
    Hook(module=f"{STATE}.interface", name="ModelState.add_request", parameters=("self", "req_index", "new_req_data")),
    Hook(
        module=f"{STATE}.interface",
        name="ModelState.preprocess_state",
        parameters=("self", "input_batch", "block_tables", "kv_cache_config", "num_computed_tokens"),
    ),
    Hook(
        module=f"{STATE}.interface",
        name="ModelState.postprocess_state",
        parameters=("self", "idx_mapping", "num_sampled", "num_computed_tokens"),
    ),
    Hook(module=f"{STATE}.default", name="DefaultModelState.prepare_attn"),
    Hook(module="vllm.v1.attention.backends.registry", name="AttentionBackendEnum"),
    Hook(module="vllm.v1.worker.gpu.input_batch", name="InputBatch"),
    Hook(
        module="vllm.v1.worker.gpu.sample.sampler",
        name="Sampler.apply_sampling_params",
        parameters=(
            "self",
            "logits",
            "expanded_idx_mapping",
            "idx_mapping",
            "idx_mapping_np",
            "pos",
            "input_ids",
            "expanded_local_pos",
            "seq_lens_upper_bound_np",
        ),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.rejection_sampler",
        name="RejectionSampler._verify",
        parameters=(
            "self",
            "logits",
            "draft_logits",
            "draft_sampled",
            "pos",
            "cu_num_logits",
            "idx_mapping",
            "idx_mapping_np",
            "expanded_idx_mapping",
            "expanded_local_pos",
            "seq_lens_upper_bound_np",
            "verify_draft_sampled",
        ),
    ),
)
