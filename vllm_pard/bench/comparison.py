"""A comparison that is ready to run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_pard.bench.methods import Contender, Models
from vllm_pard.bench.options import Options
from vllm_pard.bench.plan import Plan, Step
from vllm_pard.bench.report import Report, write_report
from vllm_pard.bench.session import Engine, Session


@dataclass
class Comparison:
    """Checked and ready to run. `report` is always true of what has been measured so far."""

    options: Options
    models: Models
    tokenizer: Any
    plan: Plan
    report: Report
    is_complete: bool = False

    def run(self, on_step: Callable[[Step], None]) -> None:
        """Measure everything; raises only what is not a method's own failure."""
        Session(self.plan, self._start, on_step, self._save_json, self.report.results).run()
        self.is_complete = True

    @property
    def has_failures(self) -> bool:
        """Whether a method failed, or gave other outputs than rounding explains."""
        failed = any(cell.failure for cell in self.report.results.cells.values())
        return failed or any(judgement.outcome == "different" for judgement in self.report.judgements)

    def save(self) -> list[Path]:
        """Write what was asked for; the files."""
        written = []
        if self.options.json_file:
            self._save_json()
            written.append(self.options.json_file)
        if self.options.plots:
            from vllm_pard.bench.plots import draw_plots

            written += draw_plots(self.report.as_record(complete=self.is_complete), self.options.plots)
        return written

    def _save_json(self) -> None:
        if self.options.json_file:
            write_report(self.options.json_file, self.report, complete=self.is_complete)

    def _start(self, contender: Contender) -> Engine:
        engine = self._engine(contender)
        if engine.mode is not None:
            self.report.conditions["methods"][contender.label]["mode"] = engine.mode
        return engine

    def _engine(self, contender: Contender) -> Engine:
        if self.options.reference:
            from vllm_pard.bench.reference_engine import ReferenceRunner, max_length

            return ReferenceRunner(
                contender,
                self.models,
                self.options.dtype,
                max_length(self.plan.requests, self.plan.sampling),
                self.report.conditions["num_threads"],
            )
        from vllm_pard.bench.engines import ServedEngine

        port = self.options.port
        if port is not None and self.plan.together:
            port += self.plan.contenders.index(contender)
        engine_options = self.report.conditions["engine_options"]
        return ServedEngine(
            contender,
            self.models,
            engine_options,
            tokenizer=self.tokenizer,
            port=port,
            verbose=self.options.verbose,
        )
