"""What drafting on model runner V1 relies on."""

from vllm_pard.serving.hook import Hook

PROPOSER_PARAMETERS = {
    "initialize_attn_backend": ("self", "kv_cache_config"),
    "set_inputs_first_pass": ("self", "target_token_ids", "next_token_ids", "cad"),
    "build_per_group_and_layer_attn_metadata": ("self", "common_attn_metadata", "draft_index"),
    "_get_slot_mapping": ("self", "num_tokens", "slot_mapping"),
}
SLOT_PARAMETERS = ("cad", "new_positions", "is_rejected_token_mask", "block_size", "num_new_tokens", "max_model_len")
RUNNER_V1_HOOKS = (
    *(
        Hook(
            module="vllm.v1.spec_decode.llm_base_proposer", name=f"SpecDecodeBaseProposer.{name}", parameters=parameters
        )
        for name, parameters in PROPOSER_PARAMETERS.items()
    ),
    Hook(module="vllm.v1.spec_decode.utils", name="PADDING_SLOT_ID"),
    Hook(module="vllm.v1.spec_decode.utils", name="compute_new_slot_mapping", parameters=SLOT_PARAMETERS),
    Hook(
        module="vllm.v1.sample.rejection_sampler",
        name="RejectionSampler.forward",
        parameters=("self", "metadata", "draft_probs", "logits", "sampling_metadata"),
    ),
    Hook(
        module="vllm.v1.sample.sampler",
        name="Sampler.gather_specific_token_logprobs",
        parameters=("self", "logprobs", "logprob_token_ids", "sampled"),
    ),
)
