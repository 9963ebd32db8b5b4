"""What the host issues in a draft step, counted without a GPU: ours, and vLLM's own parallel drafting beside it.

python benchmarks/host_work.py [--json benchmarks/results/host_work.json] [--where]

A tiny pair answers a batch of equal prompts in a real engine, each method in a process of its own, K = 8; counted is
`propose` in decode steps of the whole batch, and in the step that reads its prompts of 20 tokens. Triton is
interpreted, FlashAttention's kernels are torch (tests/support), and graphs are recorded. What is counted
(benchmarks/host_counter.py):

host_launches          Triton launches, replays of a graph (one each), operators and copies to the device
torch_operators        operators that write memory of the device: no views, no allocations, nothing on the host's
                       tensors
device_to_host_copies  values that the host waits for

`..._of_the_forward` are those of them that the draft's model issues, which every method has to; a step's own work is
the difference. `..._with_prompts` is the step that reads them. `--where` names the places.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests" / "support")]

NUM_DRAFTS, BATCH_SIZES, MAX_TOKENS, PROMPT_LENGTH = 8, (1, 4, 16), 12, 20
UPSTREAM = {"method": "draft_model", "parallel_drafting": True}
OUR_ATTENTION = {"attention_backend": "CUSTOM"}
PARD2 = "pard2, dependent"
METHODS: dict[tuple[str, str], dict[str, Any]] = {
    ("draft_model+parallel_drafting", "eager"): UPSTREAM,
    ("pard", "eager"): {},
    ("pard", "graph"): {},
    ("pard, CUSTOM attention", "eager"): OUR_ATTENTION,
    ("pard, CUSTOM attention", "graph"): OUR_ATTENTION,
    (PARD2, "eager"): {"mode": "dependent"},
    (PARD2, "graph"): {"mode": "dependent"},
}
LAUNCHES = ("triton", "graph", "operator", "copy to device")


def count_steps(pair: Path, method: str, mode: str) -> list[dict[str, Any]]:
    """In this process, which must not have imported vLLM yet: a row for each batch size."""
    import v2_interpreter

    is_upstream = METHODS[method, mode].get("method") is not None
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(not is_upstream))
    v2_interpreter.keep_asynchronous_scheduling()
    import flash_on_cpu

    flash_on_cpu.use_flash_attention()
    import scenarios
    from host_counter import HostWork, counted_launches
    from recorded_graph import RecordedGraph, capture_draft_graphs

    draft = pair / ("pard2" if method == PARD2 else "draft")
    if not draft.exists():
        from pard2_draft import save_pard2_draft

        save_pard2_draft(draft, pair / "draft")
    llm = scenarios.make_llm(
        str(pair / "target"), str(draft), num_drafts=NUM_DRAFTS, spec=METHODS[method, mode],
        max_num_seqs=max(BATCH_SIZES), max_num_batched_tokens=512,
    )  # fmt: skip
    runner = scenarios.model_runner(llm)
    drafter = runner.drafter if is_upstream else runner.speculator
    if mode == "graph":
        capture_draft_graphs(drafter, list(BATCH_SIZES))
    layers = drafter.vllm_config.compilation_config.static_forward_context
    for layer in layers.values():
        layer.use_direct_call = True  # else it is one operation that hides all others
    steps: list[tuple[int, Counter[Any]]] = []
    drafter.propose = counting(drafter, steps, HostWork(), partial(counted_launches, graph=RecordedGraph))
    rows = []
    for batch_size in BATCH_SIZES:
        steps.clear()
        prompts = scenarios.prompts((PROMPT_LENGTH,) * batch_size)
        scenarios.generate(llm, prompts, scenarios.greedy(MAX_TOKENS))
        of_whole_batch = [counts for num_reqs, counts in steps if num_reqs == batch_size]
        first, *decodes = of_whole_batch
        of_prompts = {"host_launches_with_prompts": total(first, LAUNCHES)}
        rows.append({"method": method, "mode": mode, "batch_size": batch_size, **summary(decodes), **of_prompts})
    return rows


def counting(drafter: Any, steps: list[Any], work: Any, counted_launches: Callable[..., Any]) -> Callable[..., Any]:
    """`propose`, which notes each step's number of requests and counts."""
    propose = drafter.propose

    def enter(*_: Any) -> None:
        work.is_in_forward = True

    def leave(*_: Any) -> None:
        work.is_in_forward = False

    drafter.model.register_forward_pre_hook(enter)
    drafter.model.register_forward_hook(leave)

    def counted(*args: Any, **kwargs: Any) -> Any:
        work.counts = Counter()
        with work.counting(*args, *kwargs.values()), counted_launches(work):
            tokens = propose(*args, **kwargs)
        steps.append((len(tokens), work.counts))
        return tokens

    return counted


def total(counts: Counter[Any], kinds: tuple[str, ...], only_forward: bool = False) -> int:
    return sum(
        n for (kind, _, place), n in counts.items() if kind in kinds and (place == "forward" or not only_forward)
    )


def summary(steps: list[Counter[Any]]) -> dict[str, Any]:
    """The medians of some steps, and the places of the step in the middle."""

    def middle(kinds: tuple[str, ...], only_forward: bool = False) -> int:
        return median_low([total(counts, kinds, only_forward) for counts in steps])

    whole = sorted(steps, key=lambda counts: total(counts, LAUNCHES))[len(steps) // 2]
    return {
        "host_launches": middle(LAUNCHES),
        "torch_operators": middle(("operator",)),
        "device_to_host_copies": middle(("read",)),
        "host_launches_of_the_forward": middle(LAUNCHES, only_forward=True),
        "torch_operators_of_the_forward": middle(("operator",), only_forward=True),
        "num_steps": len(steps),
        "where": [f"{n} {kind}: {name}, {place}" for (kind, name, place), n in sorted(whole.items())],
    }


def count_alone(pair: Path, method: str, mode: str) -> list[dict[str, Any]]:
    """One engine a process."""
    from engine import ENVIRONMENT

    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--only", method, mode, str(pair), str(result)]
        # What vLLM compiles in a step of V1 lies outside `propose`, and needs a Triton that compiles.
        environment = os.environ | ENVIRONMENT | {"TORCHDYNAMO_DISABLE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{method}, {mode}: the engine failed\n{done.stderr[-4000:]}")
        rows: list[dict[str, Any]] = json.loads(result.read_text())
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--where", action="store_true", help="name what each step issues, and where")
    parser.add_argument("--only", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only is not None:
        method, mode, pair, result = given.only
        Path(result).write_text(json.dumps(count_steps(Path(pair), method, mode)))
        return 0
    from tables import host_work_table
    from tiny_models import save_pair

    from vllm_pard.conditions import conditions
    from vllm_pard.files import write_whole

    with tempfile.TemporaryDirectory() as folder:
        save_pair(Path(folder))
        rows = [row for method, mode in METHODS for row in count_alone(Path(folder), method, mode)]
    if given.where:
        for row in rows:
            print(f"{row['method']}, {row['mode']}, {row['batch_size']}", *row["where"], sep="\n  ")
    if given.json is not None:
        for row in rows:
            del row["where"]
        document = {"conditions": conditions(), "num_speculative_tokens": NUM_DRAFTS, "rows": rows}
        write_whole(given.json, json.dumps(document, indent=1) + "\n")
    print(host_work_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
