"""What we rely on in vLLM's schedulers, where the number of draft tokens is chosen."""

from vllm_pard.serving.hooks.hook import Hook

SCHEDULER_HOOKS = (
    Hook(module="vllm.config.scheduler", name="SchedulerConfig.get_scheduler_cls", parameters=("self",)),
    Hook(module="vllm.v1.core.sched.async_scheduler", name="AsyncScheduler"),
    Hook(module="vllm.v1.core.sched.scheduler", name="Scheduler.schedule"),
    Hook(
        module="vllm.v1.core.sched.scheduler",
        name="Scheduler.update_from_output",
        parameters=("self", "scheduler_output", "model_runner_output"),
    ),
    Hook(module="vllm.v1.core.sched.output", name="SchedulerOutput"),
)
