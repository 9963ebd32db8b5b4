"""What a training step costs, beside the layout of PARD's published code (benchmarks/reference_layout.py).

python benchmarks/training_step.py [--json benchmarks/results/training_step_cpu.json] [--runs 3] [--lengths 512,1024]

One text of each length, P = 16, retention 0.7 and at least 0.1, all tokens trained, loss 0.1 CE + KL with CAT weights,
a small draft in float32; random hidden states stand in for the target. A step is all of it: rows laid out, forward,
backward. Methods alternate, each run in a process of its own, which takes one step to warm up and two that are timed:

rows             rows that have a label; rows_per_second counts these
seconds          median of the timed steps; collate_seconds of it before the model sees the batch
peak_bytes       the process's peak resident memory (getrusage) after its steps, less what it was when the models were
                 loaded and a step over 32 tokens had run: largest of the runs
ratio            rows_per_second over the reference's
memory_ratio     the reference's peak_bytes over this one's

Where the reference's mask alone would not fit into memory it is skipped, and the row says so.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

METHODS = ("reference", "ours")
LENGTHS, NUM_DEPTHS, RETENTION, MIN_RETENTION = (512, 1024, 2048, 4096), 16, 0.7, 0.1
WARM_UP_LENGTH, NUM_TIMED_STEPS = 32, 2
TARGET_WIDTH, MASK_TOKEN_ID = 512, 0
DRAFT = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": max(LENGTHS),
    "tie_word_embeddings": True,
}
MASK_BYTES = 4  # of an element of the reference's mask

Step = Callable[[int, int], tuple[int, float]]


def make_step(method: str) -> Step:
    """A step over a text of some length, with some seed -> (labelled rows, seconds of the collator)."""
    import torch
    from torch import nn
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    draft = LlamaForCausalLM._from_config(LlamaConfig(**DRAFT), attn_implementation="sdpa")
    lm_head = nn.Linear(TARGET_WIDTH, DRAFT["vocab_size"], bias=False).requires_grad_(False)
    learn = _reference(draft, lm_head) if method == "reference" else _ours(draft, lm_head)

    def step(length: int, seed: int) -> tuple[int, float]:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(1, DRAFT["vocab_size"], (length,), generator=generator)
        hidden = torch.randn(length, TARGET_WIDTH, generator=generator)
        log_probs = torch.rand(length, generator=generator).log()
        num_rows, seconds, loss = learn(tokens, hidden, log_probs, seed)
        loss.backward()
        for parameter in draft.parameters():
            parameter.grad = None
        return num_rows, seconds

    return step


def _cod() -> Any:
    from vllm_pard.training.options.config import CodConfig

    return CodConfig(num_depths=NUM_DEPTHS, retention=RETENTION, min_retention=MIN_RETENTION)


def _reference(draft: Any, lm_head: Any) -> Callable[..., tuple[int, float, Any]]:
    import torch
    from reference_layout import IGNORED, collate, step_loss

    def learn(tokens: Any, hidden: Any, log_probs: Any, seed: int) -> tuple[int, float, Any]:
        started = time.perf_counter()
        batch = collate(tokens, _cod(), MASK_TOKEN_ID, torch.Generator().manual_seed(seed))
        seconds = time.perf_counter() - started
        loss = step_loss(draft, batch, hidden, log_probs, lm_head)
        return int((batch.labels != IGNORED).sum()), seconds, loss

    return learn


def _ours(draft: Any, lm_head: Any) -> Callable[..., tuple[int, float, Any]]:
    import torch

    from vllm_pard.training.cod.collator import Collator
    from vllm_pard.training.models.parallel_draft import ParallelDraft
    from vllm_pard.training.models.target import TargetOutput
    from vllm_pard.training.options.config import LossConfig

    loss = LossConfig(ce=0.1, kl=1.0, weights="cat")
    model = ParallelDraft(draft, mask_token_id=MASK_TOKEN_ID, loss=loss, num_depths=NUM_DEPTHS)
    collator = Collator(cod=_cod(), seed=0, vocab_size=int(DRAFT["vocab_size"]))

    def learn(tokens: Any, hidden: Any, log_probs: Any, seed: int) -> tuple[int, float, Any]:
        started = time.perf_counter()
        pack = {"tokens": tokens, "documents": torch.zeros_like(tokens), "is_trained": tokens >= 0, "draw": seed}
        batch = collator([pack])
        seconds = time.perf_counter() - started
        outputs = model(**batch, target=TargetOutput(hidden[:, :0], lambda: log_probs, hidden, lm_head))
        return len(batch["labels"]), seconds, outputs["loss"] / outputs["weight"]

    return learn


def measure(method: str, length: int) -> dict[str, Any]:
    """In a process of its own."""
    step = make_step(method)
    step(WARM_UP_LENGTH, 0)
    before = peak_memory()
    step(length, 0)
    steps = []
    for seed in range(NUM_TIMED_STEPS):
        started = time.perf_counter()
        num_rows, collate_seconds = step(length, seed + 1)
        steps.append((num_rows, time.perf_counter() - started, collate_seconds))
    return {"steps": steps, "peak_bytes": peak_memory() - before}


def peak_memory() -> int:
    """Bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_alone(method: str, length: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--only", method, str(length), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{method}, {length} tokens: the step failed\n{done.stderr[-4000:]}")
        measured: dict[str, Any] = json.loads(result.read_text())
    return measured


def reason_to_skip(method: str, length: int, free_bytes: int) -> str | None:
    """The mask, and its kept rows, which are gathered while it is still there."""
    if method != "reference":
        return None
    num_rows, num_kept = NUM_DEPTHS * length, sum(_cod().anchors_per_depth(length))
    needed = MASK_BYTES * num_rows * (num_rows + num_kept)
    if needed < 0.9 * free_bytes:
        return None
    return (
        f"a mask of {num_rows} x {num_rows} and the kept part of it take {needed / 1e9:.1f} GB; "
        f"{free_bytes / 1e9:.1f} GB of memory are free"
    )


def free_memory() -> int:
    """Bytes that a process can still have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def row_of(method: str, length: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    num_rows, seconds, collate_seconds = (
        median(step[place] for run in runs for step in run["steps"]) for place in range(3)
    )
    return {
        "method": method,
        "length": length,
        "rows": int(num_rows),
        "seconds": round(seconds, 4),
        "collate_seconds": round(collate_seconds, 4),
        "rows_per_second": round(num_rows / seconds, 1),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
    }


def rows_of_length(length: int, num_runs: int) -> list[dict[str, Any]]:
    """Alternating; a row for each method."""
    reasons = {method: reason_to_skip(method, length, free_memory()) for method in METHODS}
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS if reasons[method] is None}
    for _ in range(num_runs):
        for method, found in runs.items():
            found.append(measure_alone(method, length))
    rows = {method: row_of(method, length, found) for method, found in runs.items()}
    for row in rows.values():
        reference = rows.get("reference")
        row["ratio"] = reference and round(row["rows_per_second"] / reference["rows_per_second"], 2)
        # Steps that are small enough take no more memory than the process had had before.
        row["memory_ratio"] = None
        if reference is not None and row["peak_bytes"] > 0:
            row["memory_ratio"] = round(reference["peak_bytes"] / row["peak_bytes"], 2)
    skipped = [{"method": m, "length": length, "skipped": reason} for m, reason in reasons.items() if reason]
    return [*skipped, *rows.values()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--runs", type=int, default=3, help="processes for each method and length")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), metavar="LENGTHS")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.only is not None:
        method, length, result = given.only
        Path(result).write_text(json.dumps(measure(method, int(length))))
        return 0
    from vllm_pard.conditions import conditions
    from vllm_pard.files import write_whole

    rows = []
    for length in map(int, given.lengths.split(",")):
        for row in rows_of_length(length, given.runs):
            rows.append(row)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if given.json is not None:
        document = {
            "conditions": conditions() | {"num_threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))},
            "draft": DRAFT,
            "cod": {"num_depths": NUM_DEPTHS, "retention": RETENTION, "min_retention": MIN_RETENTION},
            "runs": given.runs,
            "rows": rows,
        }
        write_whole(given.json, json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
