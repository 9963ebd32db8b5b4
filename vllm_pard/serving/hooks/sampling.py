"""What we rely on in vLLM's samplers and in its check of a request's sampling parameters."""

from vllm_pard.serving.hooks.hook import Hook

VALIDATION_HOOKS = (
    Hook(module="vllm.sampling_params", name="SamplingParams"),
    Hook(
        module="vllm.sampling_params",
        name="SamplingParams._validate_spec_decode",
        parameters=("self", "speculative_config"),
    ),
)

V1_SAMPLING_HOOKS = (
    Hook(module="vllm.v1.outputs", name="DraftTokenIds"),
    Hook(module="vllm.v1.sample.logits_processor", name="BUILTIN_LOGITS_PROCESSORS"),
    Hook(module="vllm.v1.sample.logits_processor.state", name="LogitsProcessors.all"),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.take_draft_token_ids"),
)

SAMPLING_HOOKS = (
    Hook(
        module="vllm.v1.worker.gpu.lora_utils",
        name="LoraState.make_lora_inputs",
        parameters=("self", "req_ids", "idx_mapping", "num_scheduled_tokens"),
    ),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.execute_model", parameters=("self", "scheduler_output")),
    Hook(
        module="vllm.v1.worker.gpu.sample.gumbel",
        name="gumbel_sample",
        parameters=(
            "logits",
            "expanded_idx_mapping",
            "temperature",
            "seed",
            "pos",
            "apply_temperature",
            "is_drafting",
            "logits_cache",
            "logits_cache_col",
            "use_fp64",
        ),
    ),
    Hook(
        module="vllm.v1.worker.gpu.sample.states",
        name="SamplingStates.apply_temperature",
        parameters=("self", "logits", "expanded_idx_mapping", "idx_mapping_np"),
    ),
    Hook(
        module="vllm.v1.worker.gpu.sample.states",
        name="SamplingStates.apply_min_p",
        parameters=("self", "logits", "expanded_idx_mapping", "idx_mapping_np"),
    ),
    Hook(
        module="vllm.v1.worker.gpu.sample.states",
        name="SamplingStates.apply_top_k_top_p",
        parameters=("self", "logits", "expanded_idx_mapping", "idx_mapping_np"),
    ),
    Hook(module="vllm.v1.outputs", name="LogprobsTensors"),
    Hook(
        module="vllm.v1.worker.gpu.sample.logprob",
        name="compute_topk_scores",
        parameters=(
            "logits",
            "num_logprobs",
            "sampled_token_ids",
            "logprob_token_ids_state",
            "expanded_idx_mapping",
            "max_per_req_token_ids",
            "logits_mode",
        ),
    ),
    Hook(module="vllm.v1.worker.gpu.sample.output", name="SamplerOutput"),
    Hook(
        module="vllm.v1.worker.gpu.sample.sampler",
        name="Sampler.get_logprobs_dims",
        parameters=("self", "idx_mapping_np"),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.rejection_sampler",
        name="RejectionSampler._get_logprobs_tensors",
        parameters=(
            "self",
            "sampled",
            "num_sampled",
            "logits",
            "cu_num_logits",
            "cu_num_logits_np",
            "max_num_logprobs",
        ),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.rejection_sampler",
        name="get_max_chunk_logits",
        parameters=("vocab_size",),
    ),
    Hook(
        module="vllm.v1.worker.gpu.spec_decode.speculator",
        name="DraftModelSpeculator._maybe_predict_acceptance",
        parameters=("self", "logits", "idx_mapping", "draft_step"),
    ),
)
