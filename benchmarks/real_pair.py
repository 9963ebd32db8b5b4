"""A real pair on a laptop: drafts for SmolLM2-135M-Instruct, trained and measured by the commands that users have.

python benchmarks/real_pair.py --train gsm8k_train.jsonl --test gsm8k_test.jsonl humaneval.jsonl \
    [--work runs/real_pair] [--json benchmarks/results/real_pair_cpu.json]

1. the target answers the questions                    vllm-pard generate
2. layers of it learn the next token, and from them    vllm-pard train      benchmarks/configs/real_pair.yaml
   a PARD-2 and a PARD draft are trained
3. their acceptance is measured, K = 5                 vllm-pard evaluate
4. they are served                                     vllm-pard bench      against plain decoding and the draft of the
                                                                            next token

What is finished is not done again, so an interrupted run goes on. The files have a JSON object with "messages" a line.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from real_target import make_target  # noqa: E402

from vllm_pard.conditions import conditions  # noqa: E402
from vllm_pard.metrics import AcceptanceStats  # noqa: E402

CONFIG = ROOT / "benchmarks" / "configs" / "real_pair.yaml"
K, MAX_TOKENS = 5, 256
BENCH_PROMPTS = 16  # of each task
# What each draft is trained with beside the config; PARD after PARD-2, whose cache of the target serves both.
NEXT_TOKEN, DRAFTS = "next_token", ("pard2", "pard")
STAGES: dict[str, tuple[str, ...]] = {
    NEXT_TOKEN: (
        *("--prune_layers", "4", "--cod.num_depths", "1", "--loss.ce", "1.0", "--loss.kl", "0.0"),
        *("--trainer.num_train_epochs", "3"),
    ),
    "pard2": ("--features", "{layers: [-1, -8, -16, -24], scale: 0.02, dropout: 0.1}", "--loss.weights", "cat"),
    "pard": (),
}


@dataclass(frozen=True)
class Pair:
    """Where everything is."""

    work: Path
    train: Path
    tests: tuple[Path, ...]

    @property
    def target(self) -> Path:
        return self.work / "smollm2-135m-instruct"

    @property
    def answers(self) -> Path:
        return self.work / "answers.jsonl"

    def draft(self, kind: str) -> Path:
        return self.work / kind

    @property
    def served(self) -> dict[str, str]:
        """How each row of the result is called, and its method of `vllm-pard bench`."""
        return {
            "none": "none",
            "next token": f"draft_model={self.draft(NEXT_TOKEN)}",
            "pard": f"pard={self.draft('pard')}",
            "pard2, independent": f"pard+independent={self.draft('pard2')}",
            "pard2, dependent": f"pard={self.draft('pard2')}",
        }


def answer(pair: Pair) -> None:
    """Greedy answers, in bfloat16, many at a time."""
    options = ["--prompts", pair.train, "--output", pair.answers, "--resume", "--max-tokens", MAX_TOKENS]
    engine = '{"max_num_seqs": 32, "max_model_len": 1024}'
    _pard("generate", pair.target, "--no-pard", *options, "--dtype", "bfloat16", "--engine-args", engine)


def train(pair: Pair, stage: str) -> None:
    sources = json.dumps([{"path": str(pair.answers)}])
    places = ["--target", pair.target, "--output", pair.draft(stage), "--data.sources", sources]
    if stage != NEXT_TOKEN:
        places += ["--draft", pair.draft(NEXT_TOKEN), "--target_cache", pair.work / "cache"]
    _pard("train", CONFIG, *places, *STAGES[stage])


def evaluate(pair: Pair, kind: str) -> list[dict[str, Any]]:
    result = pair.work / f"evaluation_{kind}.json"
    if not result.exists():
        tasks = [word for test in pair.tests for word in ("--prompts", test)]
        options = ["--k", K, "--max-tokens", MAX_TOKENS, "--output", result, *tasks]
        options += ["--mode", "both"] if kind == "pard2" else []
        engine = '{"max_num_seqs": 32, "max_model_len": 1024}'
        _pard("evaluate", pair.target, pair.draft(kind), *options, "--dtype", "bfloat16", "--engine-args", engine)
    rows: list[dict[str, Any]] = json.loads(result.read_text())["rows"]
    return rows


def serve(pair: Pair, test: Path) -> dict[str, Any]:
    """Speed, and outputs compared with plain decoding's in float32, one request at a time."""
    result = pair.work / f"bench_{test.stem}.json"
    if not result.exists():
        options = ["--methods", ",".join(pair.served.values()), "--num-speculative-tokens", K]
        options += ["--prompts", test, "--num-prompts", BENCH_PROMPTS, "--max-tokens", MAX_TOKENS]
        options += ["--engine-args", '{"max_model_len": 1024}', "--dtype", "float32", "--verify"]
        _pard("bench", pair.target, *options, "--json", result)
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def acceptance_rows(pair: Pair) -> list[dict[str, Any]]:
    """A row for each draft, mode and task."""
    return [
        {
            "method": kind if kind == "pard" else f"{kind}, {row['mode']}",
            "task": Path(row["task"]).stem,
            "num_speculative_tokens": row["num_speculative_tokens"],
            "acceptance_length": row["acceptance_length"],
            "acceptance_by_position": row["acceptance_by_position"],
            "training_seconds": json.loads((pair.draft(kind) / "receipt.json").read_text())["training_seconds"],
        }
        for kind in DRAFTS
        for row in evaluate(pair, kind)
    ]


def speed_rows(pair: Pair) -> list[dict[str, Any]]:
    """A row for each task and method by which it was served."""
    return [
        row | {"task": test.stem} for test in pair.tests for row in rows_of_bench(serve(pair, test), list(pair.served))
    ]


def rows_of_bench(served: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """Of one run of `vllm-pard bench`, whose methods are called by these names, plain decoding first."""
    speeds = [median(run["num_tokens"] / run["seconds"] for run in each["runs"]) for each in served["results"]]
    differing = {check["label"]: check["num_requests"] - check["num_equal"] for check in served["verification"]}
    return [
        {
            "method": name,
            "acceptance_length": round(_stats(result).mean_acceptance_length, 4),
            "tokens_per_second": round(speed, 1),
            "speed_up": round(speed / speeds[0], 3),
            "num_outputs_that_differ": differing.get(result["method"], 0),
        }
        for name, result, speed in zip(names, served["results"], speeds, strict=True)
    ]


def _stats(result: dict[str, Any]) -> AcceptanceStats:
    return sum((AcceptanceStats(**run["stats"]) for run in result["runs"]), AcceptanceStats())


def _pard(*words: object) -> None:
    command = [sys.executable, "-m", "vllm_pard.cli", *map(str, words)]
    print("$ vllm-pard", *map(str, words), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


class Spent:
    """Seconds of each step, kept on disk: a step that an earlier run has finished took what it took then."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    def on(self, name: str, step: Callable[[], None]) -> None:
        started = time.monotonic()
        step()
        if name not in self.seconds:
            self.seconds[name] = round(time.monotonic() - started, 1)
            self.file.write_text(json.dumps(self.seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="questions to train on")
    parser.add_argument("--test", type=Path, nargs="+", required=True, help="questions to measure on, a file a task")
    parser.add_argument("--work", type=Path, default=Path("runs/real_pair"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    pair = Pair(given.work.resolve(), given.train.resolve(), tuple(path.resolve() for path in given.test))
    pair.work.mkdir(parents=True, exist_ok=True)
    source = make_target(pair.target)
    spent = Spent(pair.work / "seconds.json")
    spent.on("answers", lambda: answer(pair))
    for stage in STAGES:
        spent.on(stage, partial(train, pair, stage))
    about = conditions() | {"target": source, "seconds": spent.seconds, "num_speculative_tokens": K}
    about |= {"num_questions": sum(1 for _ in pair.train.open())}
    result = {"conditions": about, "rows": [*acceptance_rows(pair), *speed_rows(pair)]}
    print(json.dumps(result["rows"], indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
