"""PardWorker: the platform's own worker with PARD's drafting put in place between init_device and load_model."""

from typing import Any, cast

from vllm.logger import init_logger
from vllm.platforms import current_platform

from vllm_pard.config import ConfigError
from vllm_pard.serving import compat
from vllm_pard.serving.patches import apply_patches
from vllm_pard.serving.speculative_config import PardSpeculativeConfig
from vllm_pard.serving.v1_hooks import RUNNER_V1_HOOKS

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

    def _use_v2_speculator(self) -> None:
        compat.check_hooks(compat.RUNNER_V2_HOOKS)
        from vllm_pard.serving.attention_backends import register
        from vllm_pard.serving.speculator import PardSpeculator

        register()  # layers of target and draft ask for it when they are built
        runner = self.model_runner
        runner.speculator = PardSpeculator(runner.vllm_config, runner.device, runner.req_states)
        logger.info("PARD: %s drafts on model runner V2", type(runner.speculator).__name__)

    def _use_v1_proposer(self) -> None:
        compat.check_hooks(RUNNER_V1_HOOKS)
        from vllm_pard.serving.v1_proposer import PardProposer
        from vllm_pard.serving.v1_sampler import PardRejectionSampler

        if current_platform.is_cpu():
            apply_patches("PARD workers on a CPU")
        runner = self.model_runner
        runner.drafter = PardProposer(runner.vllm_config, runner.device, runner)
        runner.rejection_sampler = PardRejectionSampler(
            runner.sampler, self.vllm_config.speculative_config, runner.device
        )
        logger.info("PARD: %s drafts on model runner V1", type(runner.drafter).__name__)
