"""`vllm-pard generate` with vLLM, in a process of its own."""

from vllm_pard.cli.batch.batch import Batch, Events
from vllm_pard.cli.engine.client import EngineProcess
from vllm_pard.process import PARD_LOG_LINE


def vllm_events(batch: Batch) -> Events:
    """The events of the engine process."""
    options = batch.options
    if batch.speculative is not None:
        options = options | {"speculative_config": batch.speculative}
    yield {"event": "starting"}
    with EngineProcess(options, verbose=batch.verbose) as engine:
        about = engine.wait_until_ready()
        yield about | {"event": "ready", "notes": [f"vLLM: {line}" for line in engine.log_lines(PARD_LOG_LINE)]}
        requests = [
            {"id": prompt.id, "text": prompt.text, "messages": prompt.messages, "seed": batch.seed_of(prompt)}
            for prompt in batch.prompts
        ]
        yield from engine.generate(requests, batch.sampling, find_costs=True)
