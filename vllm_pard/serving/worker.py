"""PardWorker: the platform's own worker with PARD's drafting put in place between init_device and load_model."""

from typing import Any, cast

from vllm.logger import init_logger
from vllm.platforms import current_platform

from vllm_pard.config import ConfigError
from vllm_pard.serving import compat
from vllm_pard.serving.patches import apply_patches
from vllm_pard.serving.speculative_config import PardSpeculativeConfig

logger = init_logger("vllm.vllm_pard")


def _platform_worker() -> type[Any]:
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker as Worker
    elif current_platform.is_cuda_alike():
        from vllm.v1.worker.gpu_worker import Worker
    else:
        raise ConfigError(
            f"PARD runs on NVIDIA and AMD GPUs and on CPUs; this is {current_platform.device_name!r}: "
            f"use {compat.UPSTREAM_ALTERNATIVE}"
        )
    return cast(type[Any], Worker)


class PardWorker(_platform_worker()):  # type: ignore[misc]
    """Runs in vLLM's worker process; `worker_cls` of the engine's parallel config names it."""

    def init_device(self) -> None:
        """Build the model runner, then swap its drafting for PARD's."""
        compat.check_hooks(compat.WORKER_HOOKS)
        super().init_device()
        spec = self.vllm_config.speculative_config
        if not isinstance(spec, PardSpeculativeConfig):
            raise ConfigError(f"PardWorker was started without a PARD speculative config; got {spec!r}")
        actual = "v2" if self.use_v2_model_runner else "v1"
        if actual != spec.runner:
            raise ConfigError(
                f"PARD was planned for model runner {spec.runner.upper()}, but vLLM chose {actual.upper()} because of "
                f"another option (its log says which): leave that option out, or use {compat.UPSTREAM_ALTERNATIVE}"
            )
        if actual == "v2":
            self._use_v2_speculator()
        else:
            self._use_v1_proposer()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load target and draft, and let drafting and verification know the samplers that are built with them."""
        super().load_model(*args, **kwargs)
        if self.use_v2_model_runner:
            self._use_v2_samplers()

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step; adapters have to know how many rows of logits each request has in it."""
        if self.use_v2_model_runner and self.model_runner.lora_config is not None:
            self.model_runner.lora_state.schedule(scheduler_output.scheduled_spec_decode_tokens)
        return super().execute_model(scheduler_output)

    def take_draft_token_ids(self) -> Any:
        """Hand a step's drafts to the scheduler."""
        drafts = super().take_draft_token_ids()
        if drafts is None or self.use_v2_model_runner:
            return drafts
        from vllm_pard.serving.v1_sampling import drop_unverifiable

        return drop_unverifiable(drafts, self.model_runner)

    def _use_v2_samplers(self) -> None:
        from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

        from vllm_pard.serving.draft_sampling import FilteredDrafts
        from vllm_pard.serving.named_logprobs import NamedLogprobsRejectionSampler

        runner, verifier = self.model_runner, self.model_runner.rejection_sampler
        if type(verifier) is RejectionSampler:  # a model may bring its own
            runner.rejection_sampler = NamedLogprobsRejectionSampler(
                runner.sampler, runner.speculative_config, runner.device, watermark_key=verifier.watermark_key
            )
        if runner.speculator.draft_logits is not None:
            runner.speculator.filtered_drafts = FilteredDrafts(runner.speculator, runner.sampler.sampling_states)

    def _use_v2_speculator(self) -> None:
        compat.check_hooks(compat.RUNNER_V2_HOOKS)
        from vllm_pard.serving.attention_backends import register
        from vllm_pard.serving.lora import VerifiedRowsLoraState
        from vllm_pard.serving.speculator import PardSpeculator

        register()  # layers of target and draft ask for it when they are built
        runner = self.model_runner
        runner.speculator = PardSpeculator(runner.vllm_config, runner.device, runner.req_states)
        if runner.lora_config is not None:
            runner.lora_state = VerifiedRowsLoraState(runner.max_num_reqs)
        logger.info("PARD: %s drafts on model runner V2", type(runner.speculator).__name__)

    def _use_v1_proposer(self) -> None:
        from vllm_pard.serving.v1_proposer import PardProposer

        if current_platform.is_cpu():
            apply_patches("PARD workers on a CPU")
        runner, spec = self.model_runner, self.vllm_config.speculative_config
        draft_vocab_size = spec.draft_model_config.get_vocab_size()
        if spec.draft_vocab or draft_vocab_size != self.vllm_config.model_config.get_vocab_size():
            runner.drafter = PardProposer(runner.vllm_config, runner.device, runner)
        if spec.serves_every_sampling_param:
            from vllm_pard.serving.v1_sampling import restore_logits_processors

            restore_logits_processors(runner)
        logger.info("PARD: %s drafts on model runner V1", type(runner.drafter).__name__)
