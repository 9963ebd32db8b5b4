"""Every upstream name that we rely on.

`HOOKS` is checked at run time against the installed vLLM (only when PARD is asked for) and, by
`tests/serving/test_upstream_sources.py`, against the sources of other supported releases without importing them.
"""

from vllm_pard.serving.hooks.hook import Hook
from vllm_pard.serving.hooks.runner_v1 import RUNNER_V1_HOOKS
from vllm_pard.serving.hooks.runner_v2 import RUNNER_V2_HOOKS
from vllm_pard.serving.hooks.sampling import V1_SAMPLING_HOOKS, VALIDATION_HOOKS
from vllm_pard.serving.hooks.scheduler import SCHEDULER_HOOKS
from vllm_pard.serving.hooks.tree import TREE_HOOKS

CONFIG_HOOKS = (
    *VALIDATION_HOOKS,
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
    Hook(module="vllm.model_executor.model_loader.utils", name="get_model_cls", parameters=("model_config",)),
    Hook(module="vllm.model_executor.models.interfaces", name="supports_eagle3", parameters=("model",)),
    Hook(module="vllm.model_executor.models.registry", name="ModelRegistry"),
    Hook(module="vllm.triton_utils.importing", name="HAS_TRITON"),
)

# Of CPUs alone: importing this module takes torch's events and streams away from GPUs.
CPU_WORKER_HOOKS = (
    Hook(module="vllm.v1.worker.cpu_worker", name="CPUWorker.init_device"),
    Hook(module="vllm.v1.worker.cpu_worker", name="CPUWorker.compile_or_warm_up_model"),
)

WORKER_HOOKS = (
    *V1_SAMPLING_HOOKS,
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

HOOKS = (
    *CONFIG_HOOKS,
    *CPU_WORKER_HOOKS,
    *WORKER_HOOKS,
    *RUNNER_V1_HOOKS,
    *RUNNER_V2_HOOKS,
    *SCHEDULER_HOOKS,
    *TREE_HOOKS,
)

__all__ = [
    "CONFIG_HOOKS",
    "CPU_WORKER_HOOKS",
    "HOOKS",
    "RUNNER_V1_HOOKS",
    "RUNNER_V2_HOOKS",
    "SCHEDULER_HOOKS",
    "TREE_HOOKS",
    "WORKER_HOOKS",
    "Hook",
]
