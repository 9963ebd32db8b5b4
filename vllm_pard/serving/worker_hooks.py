"""The upstream names that a PARD worker needs on either model runner."""

from vllm_pard.serving.hook import Hook

WORKER_HOOKS = (
    Hook(module="vllm.v1.worker.cpu_worker", name="CPUWorker.init_device"),
    Hook(module="vllm.v1.worker.cpu_worker", name="CPUWorker.compile_or_warm_up_model"),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.init_device"),
    Hook(module="vllm.v1.worker.gpu_worker", name="Worker.compile_or_warm_up_model"),
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
