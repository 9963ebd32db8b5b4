"""What the demo measured, as a table and as a file."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from vllm_pard.bench.verdicts import noise, step_ms
from vllm_pard.conditions import conditions, portable
from vllm_pard.files import write_whole
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.verdict import StepCosts, Verdict, judge

# Of outputs that differ. The demo knows no gaps, so it says nothing of how wide these are.
WHY_THEY_DIFFER = {
    "bfloat16": "In bfloat16 near-ties may fall either way where the shape of a batch changes; --dtype float32 shows "
    "whether outputs are equal without that rounding. How close the choice was where these part:",
    "float32": "In float32 outputs should be equal. How close the choice was where these part:",
}
WHERE_TO_LOOK = "vllm-pard bench --dtype {dtype} --verify"


@dataclass
class Measurement:
    """One run over all prompts."""

    num_tokens: int = 0
    seconds: float = 0.0
    outputs: dict[str, list[int]] = field(default_factory=dict)
    stats: AcceptanceStats = field(default_factory=AcceptanceStats)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


def measure(events: Iterable[dict[str, Any]]) -> Measurement:
    """Add up the events of one run."""
    run = Measurement()
    for event in events:
        match event["event"]:
            case "finished":
                run.outputs[event["id"]] = event["token_ids"]
                run.num_tokens += len(event["token_ids"])
            case "done":
                run.seconds = event["seconds"]
                run.stats = AcceptanceStats(**event["stats"])
    return run


def print_report(
    console: Console, options: dict[str, Any], plain: list[Measurement], pard: list[Measurement], *, title: str
) -> None:
    stats = total_stats(pard)
    table = Table(title=f"median of {len(plain)} runs" if len(plain) > 1 else None, show_edge=False)
    table.add_column("")
    table.add_column("plain", justify="right")
    table.add_column(title, justify="right")
    table.add_row("tokens/s", f"{median_speed(plain):.1f}", f"{median_speed(pard):.1f}")
    table.add_row("speed-up", "1.00x", f"{median_speed(pard) / median_speed(plain):.2f}x")
    table.add_row("mean acceptance length", "1.00", f"{stats.mean_acceptance_length:.2f}")
    table.add_row("acceptance rate", "", f"{stats.acceptance_rate:.0%}")
    by_position = " ".join(f"{share:.2f}" for share in stats.acceptance_by_position)
    table.add_row("acceptance by position", "", by_position)
    table.add_row("outputs identical", "", identical_in_words(plain, pard))
    console.print(table)
    console.print()
    if identical_in_words(plain, pard) != "yes":
        dtype = options["dtype"]
        why = f"{WHY_THEY_DIFFER[dtype]} {WHERE_TO_LOOK.format(dtype=dtype)}"
        console.print(why, markup=False, soft_wrap=True)
    console.print(verdict(options, plain, pard).sentence, markup=False, soft_wrap=True)


def verdict(options: dict[str, Any], plain: list[Measurement], pard: list[Measurement]) -> Verdict:
    """Whether PARD pays, by the measured speeds."""
    stats, batch_size, k = total_stats(pard), options["batch_size"], options["num_speculative_tokens"]
    costs = StepCosts(
        batch_size=batch_size,
        plain_ms=step_ms(median_speed(plain), 1.0, batch_size),
        step_ms={k: step_ms(median_speed(pard), stats.mean_acceptance_length, batch_size)},
        noise=noise(*([run.tokens_per_second for run in runs] for runs in (plain, pard))),
    )
    return judge(stats, [costs], num_speculative_tokens=k, batch_size=batch_size)


def identical_in_words(plain: list[Measurement], pard: list[Measurement]) -> str:
    """Compare every run with the first plain one."""
    expected = plain[0].outputs
    different = {
        prompt_id
        for run in (*plain, *pard)
        for prompt_id in expected
        if run.outputs.get(prompt_id) != expected[prompt_id]
    }
    return f"no: {len(different)} of {len(expected)} differ" if different else "yes"


def total_stats(runs: list[Measurement]) -> AcceptanceStats:
    return sum((run.stats for run in runs), AcceptanceStats())


def median_speed(runs: list[Measurement]) -> float:
    return median(run.tokens_per_second for run in runs)


def write_report(
    path: Path,
    options: dict[str, Any],
    engine: dict[str, Any],
    plain: list[Measurement],
    pard: list[Measurement],
) -> None:
    """The numbers with their conditions; ratios can be taken again from the counts."""
    stats = total_stats(pard)
    if engine.get("draft"):
        engine = engine | {"draft": portable(engine["draft"])}
    report = {
        "conditions": conditions() | {"options": options, "engine": engine},
        "plain": {"tokens_per_second": median_speed(plain), "runs": [_row(run) for run in plain]},
        "pard": {"tokens_per_second": median_speed(pard), "runs": [_row(run) for run in pard]},
        "speed_up": median_speed(pard) / median_speed(plain),
        "mean_acceptance_length": stats.mean_acceptance_length,
        "acceptance_by_position": stats.acceptance_by_position,
        "acceptance_counts": asdict(stats),
        "outputs_identical": identical_in_words(plain, pard) == "yes",
        "verdict": asdict(verdict(options, plain, pard)),
    }
    write_whole(path, json.dumps(report, indent=2) + "\n")


def _row(run: Measurement) -> dict[str, Any]:
    return {"num_tokens": run.num_tokens, "seconds": run.seconds, "tokens_per_second": run.tokens_per_second}
