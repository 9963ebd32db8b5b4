"""A real pair on a laptop: drafts for SmolLM2-135M-Instruct, trained and measured by the commands that users have.

python benchmarks/real_pair.py --train gsm8k_train.jsonl --test gsm8k_test.jsonl humaneval.jsonl \
    [--work runs/real_pair] [--json benchmarks/results/real_pair_cpu.json]

1. the target answers the questions       vllm-pard generate
2. a PARD and a PARD-2 draft are trained   vllm-pard train      benchmarks/configs/real_pair.yaml
3. their acceptance is measured, K = 5     vllm-pard evaluate
4. the PARD draft is served                vllm-pard bench      against plain decoding and the draft one token at a time

What is finished is not done again, so an interrupted run goes on. The files have a JSON object with "messages" a line.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from real_target import make_target  # noqa: E402

from vllm_pard.bench.conditions import conditions  # noqa: E402
from vllm_pard.metrics import AcceptanceStats  # noqa: E402

CONFIG = ROOT / "benchmarks" / "configs" / "real_pair.yaml"
K, MAX_TOKENS = 5, 256
BENCH_PROMPTS = 60  # of each task
METHODS = "none,draft_model,pard"
# What PARD-2 has beside PARD; all else is the same for both.
PARD2 = ("--features", "{layers: [-1, -8, -16, -24], scale: 0.02, dropout: 0.1}", "--loss.weights", "cat")
KINDS: dict[str, tuple[str, ...]] = {"pard": (), "pard2": PARD2}


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


def answer(pair: Pair) -> None:
    """Greedy answers, in bfloat16, many at a time."""
    options = ["--prompts", pair.train, "--output", pair.answers, "--resume", "--max-tokens", MAX_TOKENS]
    engine = '{"max_num_seqs": 32, "max_model_len": 1024}'
    _pard("generate", pair.target, "--no-pard", *options, "--dtype", "bfloat16", "--engine-args", engine)


def train(pair: Pair, kind: str) -> None:
    sources = json.dumps([{"path": str(pair.answers)}])
    places = ["--target", pair.target, "--output", pair.draft(kind), "--data.sources", sources]
    _pard("train", CONFIG, *places, *KINDS[kind])


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
        drafts = ["--draft", pair.draft("pard"), "--ar-draft", pair.draft("pard"), "--num-speculative-tokens", K]
        options = ["--methods", METHODS, "--prompts", test, "--num-prompts", BENCH_PROMPTS, "--dtype", "float32"]
        limits = ["--max-tokens", MAX_TOKENS, "--engine-args", '{"max_model_len": 1024}', "--verify", "--json", result]
        _pard("bench", pair.target, *drafts, *options, *limits)
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
        for kind in KINDS
        for row in evaluate(pair, kind)
    ]


def speed_rows(pair: Pair) -> list[dict[str, Any]]:
    """A row for each method that was served, and task."""
    rows = []
    for test in pair.tests:
        served = serve(pair, test)
        medians = {
            result["method"]: median(run["num_tokens"] / run["seconds"] for run in result["runs"])
            for result in served["results"]
        }
        differing = {check["label"]: check["num_requests"] - check["num_equal"] for check in served["verification"]}
        rows += [
            {
                "method": result["method"],
                "task": test.stem,
                "acceptance_length": round(_stats(result).mean_acceptance_length, 4),
                "tokens_per_second": round(medians[result["method"]], 1),
                "speed_up": round(medians[result["method"]] / medians["none"], 3),
                "num_outputs_that_differ": differing.get(result["method"], 0),
            }
            for result in served["results"]
        ]
    return rows


def _stats(result: dict[str, Any]) -> AcceptanceStats:
    return sum((AcceptanceStats(**run["stats"]) for run in result["runs"]), AcceptanceStats())


def _pard(*words: object) -> None:
    command = [sys.executable, "-m", "vllm_pard.cli", *map(str, words)]
    print("$ vllm-pard", *map(str, words), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def _timed(step: Callable[[], None]) -> float:
    started = time.monotonic()
    step()
    return round(time.monotonic() - started, 1)


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
    seconds = {"answers": _timed(lambda: answer(pair))}
    for kind in KINDS:
        seconds[kind] = _timed(lambda: train(pair, kind))  # noqa: B023 - called at once
    about = conditions() | {"target": source, "seconds": seconds, "num_speculative_tokens": K}
    result = {"conditions": about, "rows": [*acceptance_rows(pair), *speed_rows(pair)]}
    print(json.dumps(result["rows"], indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
