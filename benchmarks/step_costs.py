"""What a decode step costs with each method, and what it brings.

python benchmarks/step_costs.py TARGET --methods none,pard=DRAFT,... [--num-speculative-tokens K]
    [--batch-sizes 1,4,16,64] [--runs 5] [--at-once 3] [--engine-args JSON] [--json FILE]

Methods are those of `vllm-pard bench`, the first is what the others are compared with. Each is an engine of its own; as
many as are to run at once start together and then answer in alternating order, one at a time. A batch is one prompt as
often as it is wide, so that all its requests accept the same tokens and end together: a step's time is that of a whole
batch. `step_ms` is the time without the prompt's step, over the steps behind it.

The enlarged demo pair (benchmarks/enlarge.py) has the steps of its size and the acceptance of the demo.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from vllm_pard.bench.methods import METHODS, Models, parse_contenders  # noqa: E402
from vllm_pard.conditions import conditions  # noqa: E402
from vllm_pard.files import write_whole  # noqa: E402

NUM_PROMPTS = 8
MAX_TOKENS = 128
WARM_UPS = 2
ENGINE_ARGS = {"max_model_len": 512, "max_num_seqs": 64, "disable_log_stats": False}


def answer(told: dict[str, Any]) -> None:
    """The engine's process: a line of stdin is a batch, a line of stdout its times and counts."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams, TokensPrompt

    from vllm_pard.bench.prompt_sets import load_prompts

    llm = LLM(told["target"], speculative_config=told["speculative_config"], **told["engine_args"])
    tokenizer = llm.get_tokenizer()
    questions = load_prompts("demo", num_prompts=NUM_PROMPTS, seed=0).prompts
    prompts = [tokenizer(question.text)["input_ids"] for question in questions]

    def timed(batch: list[TokensPrompt], max_tokens: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        llm.generate(batch, params, use_tqdm=False)
        return time.perf_counter() - started

    def counts() -> dict[str, int]:
        found = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
        names = ("num_drafts", "num_accepted_tokens")
        return {name: int(found.get(f"vllm:spec_decode_{name}", 0)) for name in names}

    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        batch = [TokensPrompt(prompt_token_ids=prompts[asked["prompt"] % NUM_PROMPTS])] * asked["batch_size"]
        prompt_seconds, before = timed(batch, 1), counts()
        seconds = timed(batch, MAX_TOKENS)
        spent = {name: number - before[name] for name, number in counts().items()}
        print(json.dumps({"prompt_seconds": prompt_seconds, "seconds": seconds} | spent), file=answers, flush=True)


@dataclass(frozen=True)
class Engine:
    """A method's engine in a process of its own."""

    label: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, label: str, told: dict[str, Any]) -> "Engine":
        command = [sys.executable, __file__, "--answer", json.dumps(told)]
        return cls(label, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def read(self) -> dict[str, Any] | None:
        """The next answer; None once the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def ask(self, batch_size: int, prompt: int) -> dict[str, Any] | None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            print(json.dumps({"batch_size": batch_size, "prompt": prompt}), file=self.process.stdin, flush=True)
        return self.read()

    def stop(self) -> None:
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(engines: list[Engine], batch_sizes: list[int], num_runs: int) -> dict[tuple[str, int], list[Any]]:
    """Batches in alternating order. An engine that ends is left out, whatever it has measured before."""
    found: dict[tuple[str, int], list[Any]] = {}
    living = [engine for engine in engines if engine.read() is not None]
    for batch_size in batch_sizes:
        for run in range(-WARM_UPS, num_runs):
            for engine in living[::-1] if run % 2 else living[:]:
                answered = engine.ask(batch_size, run)
                if answered is None:
                    living.remove(engine)
                elif run >= 0:
                    found.setdefault((engine.label, batch_size), []).append(answered)
    for engine in engines:
        if engine not in living:
            print(f"the engine of {engine.label} ended; its log is above", file=sys.stderr)
    return {key: runs for key, runs in found.items() if key[0] in {engine.label for engine in living}}


def row(label: str, batch_size: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and the extremes of a step's time."""
    drafts, accepted = (sum(run[name] for run in runs) for name in ("num_drafts", "num_accepted_tokens"))
    steps = [run["num_drafts"] / batch_size or MAX_TOKENS - 1 for run in runs]
    step_ms = [1e3 * (run["seconds"] - run["prompt_seconds"]) / num for run, num in zip(runs, steps, strict=True)]
    return {
        "method": label,
        "batch_size": batch_size,
        "step_ms": round(median(step_ms), 3),
        "step_ms_extremes": [round(min(step_ms), 3), round(max(step_ms), 3)],
        "prompt_ms": round(1e3 * median(run["prompt_seconds"] for run in runs), 2),
        "acceptance_length": round(1 + accepted / drafts, 3) if drafts else 1.0,
        "tokens_per_second": round(batch_size * MAX_TOKENS / median(run["seconds"] for run in runs), 1),
    }


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With what the first method of the same group and batch size has as 1."""
    first = {row["batch_size"]: row for row in rows if row["method"] == rows[0]["method"]}
    return [
        row
        | {
            "step_ratio": round(row["step_ms"] / first[row["batch_size"]]["step_ms"], 4),
            "speed_up": round(row["tokens_per_second"] / first[row["batch_size"]]["tokens_per_second"], 3),
        }
        for row in rows
    ]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?")
    parser.add_argument("--methods", help="METHOD[=MODEL][:K],... of `vllm-pard bench`")
    parser.add_argument("--num-speculative-tokens", type=int, metavar="K")
    parser.add_argument("--ar-draft", help="the draft of draft_model")
    parser.add_argument("--batch-sizes", default="1,4,16,64")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=3, help="engines that share the machine, the first among them")
    parser.add_argument("--engine-args", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--answer", type=json.loads, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    given = parser().parse_args()
    if given.answer is not None:
        answer(given.answer)
        return
    models = Models(target=given.target, ar_draft=given.ar_draft)
    contenders = parse_contenders(given.methods, METHODS, models, given.num_speculative_tokens)
    first, *others = contenders
    per_group = max(1, given.at_once - 1)
    groups = [[first, *others[start : start + per_group]] for start in range(0, max(1, len(others)), per_group)]
    rows: list[dict[str, Any]] = []
    for group in groups:
        told = {"target": given.target, "engine_args": ENGINE_ARGS | given.engine_args}
        engines = [
            Engine.start(one.label, told | {"speculative_config": one.speculative_config(models)}) for one in group
        ]
        try:
            found = measure(engines, [int(size) for size in given.batch_sizes.split(",")], given.runs)
        finally:
            for engine in engines:
                engine.stop()
        rows += compared([row(*key, runs) for key, runs in found.items()])
        for each in rows[len(rows) - len(found) :]:
            print(json.dumps(each), flush=True)
        if given.json is not None:
            write_whole(given.json, json.dumps({"conditions": conditions(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
