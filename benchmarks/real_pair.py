"""A real pair on a laptop: drafts for SmolLM2-135M-Instruct, trained and measured by the commands that users have.

python benchmarks/real_pair.py --train gsm8k_train.jsonl --test gsm8k_test.jsonl humaneval.jsonl \
    [--work runs/real_pair] [--json benchmarks/results/real_pair_cpu.json]

1. the target answers the questions       vllm-pard generate
2. a PARD and a PARD-2 draft are trained   vllm-pard train      benchmarks/configs/real_pair_*.yaml
3. their acceptance is measured, K = 5     vllm-pard evaluate
4. the PARD draft is served                vllm-pard bench      against plain decoding and the draft one token at a time

What is finished is not done again, so an interrupted run goes on. The files have a JSON object with "messages" a line.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from real_target import make_target  # noqa: E402

from vllm_pard.bench.conditions import conditions  # noqa: E402

CONFIGS = ROOT / "benchmarks" / "configs"
K, MAX_TOKENS = 5, 256
BENCH_PROMPTS = 60  # of each task
METHODS = "none,draft_model,pard"


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
    _pard("train", CONFIGS / f"real_pair_{kind}.yaml", *places)


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


def rows_of(pair: Pair) -> list[dict[str, Any]]:
    """A row for each method and task."""
    rows = []
    for kind in ("pard", "pard2"):
        receipt = json.loads((pair.draft(kind) / "receipt.json").read_text())
        for row in evaluate(pair, kind):
            method = kind if kind == "pard" else f"{kind}, {row['mode']}"
            rows.append(
                {
                    "method": method,
                    "task": Path(row["task"]).stem,
                    "num_speculative_tokens": row["num_speculative_tokens"],
                    "acceptance_length": row["acceptance_length"],
                    "acceptance_by_position": row["acceptance_by_position"],
                    "tokens_per_second": None,
                    "speed_up": None,
                    "training_seconds": receipt["training_seconds"],
                }
            )
    return rows


def _pard(*words: object) -> None:
    command = [sys.executable, "-m", "vllm_pard.cli", *map(str, words)]
    print("$ vllm-pard", *map(str, words), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="questions to train on")
    parser.add_argument("--test", type=Path, nargs="+", required=True, help="questions to measure on, a file a task")
    parser.add_argument("--work", type=Path, default=Path("runs/real_pair"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    pair = Pair(given.work.resolve(), given.train.resolve(), tuple(path.resolve() for path in given.test))
    pair.work.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    source = make_target(pair.target)
    for name, step in (
        ("answers", lambda: answer(pair)),
        ("pard", lambda: train(pair, "pard")),
        ("pard2", lambda: train(pair, "pard2")),
    ):
        started = time.monotonic()
        step()
        seconds[name] = round(time.monotonic() - started, 1)
    rows = rows_of(pair)
    served = {test.stem: serve(pair, test) for test in pair.tests}
    result = {"conditions": conditions() | {"target": source, "seconds": seconds}, "rows": rows, "served": served}
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
