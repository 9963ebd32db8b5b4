"""The result of `vllm-pard evaluate`: a table, a JSON file, a picture."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vllm_pard.bench.pictures import TITLE_WIDTH, Picture, Point
from vllm_pard.bench.plots import draw
from vllm_pard.cli.evaluation.measure import Evaluation
from vllm_pard.files import write_whole

MAX_POSITIONS = 8  # columns of the table


def show(evaluation: Evaluation, output: Path | None, plot: Path | None) -> None:
    """Write the files that are asked for, and print the table and what is to be said of it."""
    if output is not None:
        write_whole(output, json.dumps(asdict(evaluation), indent=2) + "\n")
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)  # whole lines in a file; tables are as wide as they need be
    console.print(table(evaluation))
    for line in notes(evaluation):
        console.print(line, style="dim", markup=False, soft_wrap=True)
    if plot is not None:
        draw(picture(evaluation), plot)


def table(evaluation: Evaluation) -> Table:
    """Acceptance length, and the share of drafts whose token at each position was accepted."""
    rows = evaluation.rows
    num_positions = min(max(row["num_speculative_tokens"] for row in rows), MAX_POSITIONS)
    has_modes = len({row["mode"] for row in rows}) > 1
    has_decoded = any("decoded" in row for row in rows)
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("task", *(["mode"] if has_modes else [])):
        drawn.add_column(name, no_wrap=True)
    for name in ("K", "length", *(["decoded"] if has_decoded else []), *map(str, range(1, num_positions + 1))):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        decoded = f"{row['decoded_acceptance_length']:.2f}" if "decoded" in row else ""
        drawn.add_row(
            row["task"],
            *([row["mode"]] if has_modes else []),
            str(row["num_speculative_tokens"]),
            f"{row['acceptance_length']:.2f}" if row["num_drafts"] else "-",
            *([decoded] if has_decoded else []),
            *(f"{share:.0%}" for share in row["acceptance_by_position"][:num_positions] if row["num_drafts"]),
        )
    return drawn


def notes(evaluation: Evaluation) -> Iterator[str]:
    """What the table does not say by itself."""
    conditions = evaluation.conditions
    yield "length: tokens per step, the bonus token counted; 1, 2, ...: drafts accepted up to this token"
    if any("decoded" in row for row in evaluation.rows):
        first = ", and before its first token" if conditions["engine"] == "reference" else ""
        yield f"decoded: as the engine counts, with drafts beyond the end of an answer{first}"
    if not all(row["num_drafts"] for row in evaluation.rows):
        yield "-: no drafts, since every answer is a single token"
    if conditions["mode_reason"] is not None:
        yield f"mode: {' and '.join(conditions['modes'])}; {conditions['mode_reason']}"
    for mode in conditions["modes"]:
        if mode != conditions["decoded_mode"]:
            engine = "vLLM" if conditions["engine"] == "vllm" else "the reference engine"
            yield f"{engine} decodes {conditions['decoded_mode']}; {mode} mode is replayed on its answers"
    for task, refused in evaluation.refused.items():
        (prompt_id, reason), num_refused = next(iter(refused.items())), len(refused)
        yield f"{num_refused} of {_num_prompts(evaluation, task)} prompts of {task} refused; {prompt_id}: {reason}"


def picture(evaluation: Evaluation) -> Picture:
    """Acceptance by position at the largest K, a line for each task and mode."""
    largest = max(row["num_speculative_tokens"] for row in evaluation.rows)
    has_modes = len({row["mode"] for row in evaluation.rows}) > 1
    series = {
        f"{row['task']}, {row['mode']}" if has_modes else row["task"]: [
            Point(place, share) for place, share in enumerate(row["acceptance_by_position"], start=1)
        ]
        for row in evaluation.rows
        if row["num_speculative_tokens"] == largest
    }
    conditions = evaluation.conditions
    title = f"{conditions['target']}, draft {conditions['draft']}, K = {largest}, {conditions['weight_dtype']}, greedy"
    return Picture(
        name="acceptance",
        title="\n".join(wrap(title, TITLE_WIDTH)),
        x_title="position of the draft token",
        y_title="share of drafts accepted up to here",
        x_axis="positions",
        series=series,
    )


def _num_prompts(evaluation: Evaluation, task: str) -> int:
    return next(int(each["num_prompts"]) for each in evaluation.conditions["tasks"] if each["name"] == task)
