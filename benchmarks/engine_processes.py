"""Engines of several methods, each in a process of its own, that answer in alternating order.

As many as are to run at once start together. A line to a process asks for something, a line of it is the answer.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from vllm_pard.bench.methods import METHODS, Models, parse_contenders  # noqa: E402
from vllm_pard.catalog import model_folder  # noqa: E402
from vllm_pard.conditions import conditions  # noqa: E402
from vllm_pard.files import write_whole  # noqa: E402

__all__ = [
    "Engine",
    "Load",
    "acceptance_length",
    "answer_all",
    "compared_rows",
    "counts",
    "demo_prompts",
    "measure",
    "measure_all",
    "parser",
    "ready",
]

WARM_UPS = 2
ENGINE_ARGS = {"max_model_len": 512, "max_num_seqs": 64, "disable_log_stats": False}
SECONDS_TO_END = 30

Asked = dict[str, Any]
Answer = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Engine:
    """A method's engine in a process of its own."""

    label: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, label: str, script: str, told: dict[str, Any]) -> "Engine":
        command = [sys.executable, script, "--answer", json.dumps(told)]
        return cls(label, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def read(self) -> Answer | None:
        """The next answer; None once the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def ask(self, asked: Asked) -> Answer | None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self.read()

    def stop(self) -> None:
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def answer_all(told: dict[str, Any], make: Callable[[Any], Callable[[Asked], Answer]]) -> None:
    """The engine's process: `make` is given the LLM, and what it makes is asked."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM

    answer = make(LLM(told["target"], speculative_config=told["speculative_config"], **told["engine_args"]))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def demo_prompts(llm: Any, num_prompts: int | None) -> list[list[int]]:
    """The demo's questions as token ids; all of them if it is not said how many."""
    from vllm_pard.bench.prompt_sets import load_prompts

    tokenizer = llm.get_tokenizer()
    return [tokenizer(each.text)["input_ids"] for each in load_prompts("demo", num_prompts=num_prompts, seed=0).prompts]


def counts(llm: Any, before: dict[str, int] | None = None) -> dict[str, int]:
    """Drafts, and the tokens of them that were accepted, since the engine started or what it had counted `before`."""
    found = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return {
        name: int(found.get(f"vllm:spec_decode_{name}", 0)) - (before or {}).get(name, 0)
        for name in ("num_drafts", "num_accepted_tokens")
    }


def acceptance_length(runs: list[Answer]) -> float:
    """Tokens of a step, over all runs."""
    drafts, accepted = (sum(run[name] for run in runs) for name in ("num_drafts", "num_accepted_tokens"))
    return round(1 + accepted / drafts, 3) if drafts else 1.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a script measures: what it asks for at each of its sizes, and a row of what came."""

    script: str
    sizes: list[int]
    ask: Callable[[int, int], Asked]  # size, number of the run
    row: Callable[[str, int, list[Answer]], Row]  # method, size, runs
    compared: Callable[[Row, Row], Row]  # a row with what it is beside the first method's of its size


def ready(engines: list[Engine]) -> list[Engine]:
    """Those that have started."""
    return [engine for engine in engines if engine.read() is not None or _has_ended(engine)]


def measure(engines: list[Engine], load: Load, num_runs: int) -> dict[tuple[str, int], list[Answer]]:
    """In alternating order. An engine that ends is left out, whatever it has measured before."""
    found: dict[tuple[str, int], list[Answer]] = {}
    living = engines[:]
    for size in load.sizes:
        for run in range(-WARM_UPS, num_runs):
            for engine in living[::-1] if run % 2 else living[:]:
                answered = engine.ask(load.ask(size, run))
                if answered is None:
                    living.remove(engine)
                    _has_ended(engine)
                elif run >= 0:
                    found.setdefault((engine.label, size), []).append(answered)
    return {key: runs for key, runs in found.items() if key[0] in {engine.label for engine in living}}


def _has_ended(engine: Engine) -> bool:
    print(f"the engine of {engine.label} ended; its log is above", file=sys.stderr)
    return False


def measure_all(given: argparse.Namespace, load: Load) -> None:
    """Every method, the first beside each group of the others; rows are printed, and written as they come."""
    models = Models(target=model_folder(given.target), ar_draft=given.ar_draft)
    first, *others = parse_contenders(given.methods, METHODS, models, given.num_speculative_tokens)
    told = {"target": models.target, "engine_args": ENGINE_ARGS | given.engine_args}
    rows: list[Row] = []
    for group in groups([first], others, max(1, given.at_once - 1)):
        engines = [
            Engine.start(one.label, load.script, told | {"speculative_config": one.speculative_config(models)})
            for one in group
        ]
        try:
            found = measure(ready(engines), load, given.runs)
        finally:
            for engine in engines:
                engine.stop()
        measured = compared_rows(load, found)
        rows += measured
        for each in measured:
            print(json.dumps(each), flush=True)
        if given.json is not None:
            write_whole(given.json, json.dumps({"conditions": conditions(), "rows": rows}, indent=2) + "\n")


def compared_rows(load: Load, found: dict[tuple[str, int], list[Answer]]) -> list[Row]:
    """Of engines that ran at once, each beside the first of them."""
    rows = {(label, size): load.row(label, size, runs) for (label, size), runs in found.items()}
    firsts: dict[int, Row] = {}
    return [load.compared(row, firsts.setdefault(size, row)) for (_, size), row in rows.items()]


def groups(first: list[Any], others: list[Any], size: int) -> Iterable[list[Any]]:
    return [first + others[start : start + size] for start in range(0, max(1, len(others)), size)]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that all such scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?")
    parser.add_argument("--methods", help="METHOD[=MODEL][:K],... of `vllm-pard bench`")
    parser.add_argument("--num-speculative-tokens", type=int, metavar="K")
    parser.add_argument("--ar-draft", help="the draft of draft_model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=3, help="engines that share the machine, the first among them")
    parser.add_argument("--engine-args", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--answer", type=json.loads, help=argparse.SUPPRESS)
    return parser
