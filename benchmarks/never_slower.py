"""Whether drafting is ever slower than not drafting: a chosen number of draft tokens beside fixed ones and none.

python benchmarks/never_slower.py --json benchmarks/results/never_slower_cpu.json \\
    [--pair 291M PAIR/target PAIR/draft]    # of benchmarks/enlarge.py --shape 300m
    [--pair real WORK/smollm2-135m-instruct WORK/pard --prompts gsm8k_test.jsonl]    # of benchmarks/real_pair.py

Greedy, in float32, each method in a server of its own, alternating, at 1, 4, 16 and 32 requests at a time. A server
keeps what it has learnt from one run to the next, as one in use does; its first run is not measured.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from real_pair import rows_of_bench  # noqa: E402

from vllm_pard.conditions import conditions  # noqa: E402

METHODS = ("none", "pard:2", "pard:4", "pard:8", "pard+auto:8")
LOADS = {(1, 4): 16, (16, 32): 6}  # requests at a time, and how many each user sends in a run


def measure(pair: str, models: list[str], given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each concurrency and method."""
    return [
        {"pair": pair, "concurrency": concurrency}
        | row
        | {"ratio_to_none": row["speed_up"], "commit": measured["commit"]}
        for concurrencies, each_sends in zip(LOADS, given.requests, strict=True)
        for concurrency, measured in _bench(pair, models, concurrencies, each_sends, given).items()
        for row in rows_of_bench(measured, list(METHODS))
    ]


def _bench(
    pair: str, models: list[str], concurrencies: tuple[int, ...], each_sends: int, given: argparse.Namespace
) -> dict[int, dict[str, Any]]:
    """What `vllm-pard bench` found, by concurrency."""
    result = given.work / f"{pair}_{concurrencies[-1]}.json"
    num_prompts = str(concurrencies[-1] * each_sends)
    if not result.exists():
        target, *draft = models
        words = ["bench", target, *(word for each in draft for word in ("--draft", each))]
        words += ["--methods", ",".join(METHODS), "--concurrency", ",".join(map(str, concurrencies))]
        words += ["--prompts", str(given.prompts or "demo"), "--num-prompts", num_prompts]
        words += ["--requests-per-user", str(each_sends), "--warmup", num_prompts, "--runs", str(given.runs)]
        words += ["--max-tokens", str(given.max_tokens), "--dtype", "float32"]
        words += ["--engine-args", '{"max_model_len": 512}', "--verify", "--json", str(result)]
        print("$ vllm-pard", *words, flush=True)
        subprocess.run([sys.executable, "-m", "vllm_pard.cli", *words], check=True, cwd=ROOT)
    found = json.loads(result.read_text())
    return {
        concurrency: {
            part: [each for each in found[part] if each["concurrency"] == concurrency]
            for part in ("results", "verification")
        }
        | {"commit": found["conditions"]["commit"]}  # a result that was there already may be of another one
        for concurrency in concurrencies
    }


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """Where the chosen number is slower than it may be."""
    found = []
    for pair, concurrency in dict.fromkeys((row["pair"], row["concurrency"]) for row in rows):
        speeds = {
            r["method"]: r["tokens_per_second"] for r in rows if (r["pair"], r["concurrency"]) == (pair, concurrency)
        }
        chosen, best = speeds[METHODS[-1]], max(speeds[method] for method in METHODS[:-1])
        if chosen < 0.98 * speeds["none"] or chosen < 0.95 * best:
            found.append(
                f"{pair}, {concurrency} at a time: {chosen / speeds['none']:.2f}x none, {chosen / best:.2f}x the best"
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs=3, action="append", default=[], metavar=("NAME", "TARGET", "DRAFT"))
    parser.add_argument("--prompts", type=Path, help="for the pairs that are given; left out, the demo's")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--requests", type=int, nargs=len(LOADS), default=LOADS.values(), help="of a user, a run")
    parser.add_argument("--work", type=Path, default=Path("runs/never_slower"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    pairs = [(name, models) for name, *models in given.pair] or [("demo", ["demo"])]
    rows = [row for name, models in pairs for row in measure(name, models, given)]
    print("\n".join(verdict(rows)) or "never slower")
    if given.json is not None:
        before = json.loads(given.json.read_text())["rows"] if given.json.exists() else []
        kept = [row for row in before if row["pair"] not in dict(pairs)]
        about = conditions() | {"runs": given.runs, "max_tokens": given.max_tokens}
        given.json.write_text(json.dumps({"conditions": about, "rows": kept + rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
