"""How an engine that answers is getting on: told every second, with what its steps cost, and in the end."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from vllm_pard.cli.engine.step_watch import StepWatch
from vllm_pard.metrics import AcceptanceStats

SECONDS_BETWEEN_REPORTS = 1.0


class EngineMeter:
    """Counts tokens, drafts and steps of one call of `generate`."""

    def __init__(self, engine: Any, send: Callable[[dict[str, Any]], None], *, find_costs: bool) -> None:
        self._engine, self._send = engine, send
        self._before = self._counts()
        self._started = self._reported = time.perf_counter()
        self._num_tokens = 0
        self._steps = StepWatch(self._hold if find_costs and num_speculative_tokens(engine) else None)

    def after_step(self, outputs: list[Any]) -> None:
        """Take note of what a step gave."""
        self._num_tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
        if costs := self._steps.after_step({output.request_id for output in outputs}):
            self._report()
            self._send({"event": "costs", **costs})
        if time.perf_counter() - self._reported > SECONDS_BETWEEN_REPORTS:
            self._report()

    def done(self) -> None:
        """The last event: what the whole call took, and its steps by batch size."""
        self._steps.close()
        steps = {size: {"ms": ms, "num_steps": num} for size, (ms, num) in self._steps.medians().items()}
        self._send({"event": "done", "steps": steps, **self._so_far()})

    def _report(self) -> None:
        self._reported = time.perf_counter()
        self._send({"event": "progress", **self._so_far()})

    def _so_far(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self._started
        stats = asdict(self._counts() - self._before)
        batch_size = self._steps.usual_batch_size
        return {"num_tokens": self._num_tokens, "seconds": seconds, "stats": stats, "batch_size": batch_size}

    def _counts(self) -> AcceptanceStats:
        return AcceptanceStats.from_vllm_metrics(self._engine.get_metrics())

    def _hold(self, hold: bool) -> float | None:
        seconds: float | None = self._engine.collective_rpc("hold_drafts", args=(hold,))[0]
        return seconds


def num_speculative_tokens(engine: Any) -> int:
    """K of an engine that drafts as PARD, else 0."""
    from vllm_pard.serving.speculative_config import PardSpeculativeConfig

    spec = engine.llm_engine.vllm_config.speculative_config
    return int(spec.num_speculative_tokens) if isinstance(spec, PardSpeculativeConfig) else 0
