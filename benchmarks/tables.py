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
from typing import Any

from bench_tables import BENCH, PLAIN_ROWS, RESULTS, ROOT, bench_table, demo_table, load, markdown, methods_table
from drafting_tables import branch_rules_table, never_slower_table, tree_builders_table, trees_table, users_table
from training_tables import LOSSES, cod_table, losses_table, pard2_table, real_pair_table

from vllm_pard.bench.pictures import Picture, pictures
from vllm_pard.bench.plots import data_of, draw

PICTURE, PICTURED = RESULTS / "speed_up.png", BENCH
STEP_COSTS = "step_costs_llama-3.1-8b_nvidia_h200"
STEP_COSTS_PARD2 = "step_costs_pard2_llama-3.1-8b_nvidia_h200"
USERS = "users_llama-3.1-8b_nvidia_h200"


def host_work_table(rows: list[dict[str, Any]]) -> str:
    """Counts of `benchmarks/host_work.py`, a line for each method, mode and batch size."""
    lines = []
    for row in rows:
        launches, operators = (
            f"{row[name]} ({row[name] - row[f'{name}_of_the_forward']})"
            for name in ("host_launches", "torch_operators")
        )
        counts = [launches, operators, row["device_to_host_copies"], row["host_launches_with_prompts"]]
        lines.append([row["method"], row["mode"], row["batch_size"], *counts])
    note = (
        "Medians of the decode steps of a batch; in brackets what is left without the draft's forward. Behind them the "
        "step that reads the batch's prompts."
    )
    titles = ["batch", "host launches", "torch operators", "device-to-host copies", "host launches with prompts"]
    return markdown(["method", "mode"], titles, lines, note)


def step_costs_table(name: str) -> str:
    """A row a method; for each batch size its step and what it brings."""
    result = load(name)
    rows = result["rows"]
    sizes = sorted({row["batch_size"] for row in rows})
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = {row["batch_size"]: row for row in rows if row["method"] == method}
        cells = [
            f"{row['step_ms']:.2f} ms, {row['step_ratio']:.2f}; {row['tokens_per_second']:,.0f} tokens/s, "
            f"**{row['speed_up']:.2f}x**"
            for row in map(of_method.__getitem__, sizes)
        ]
        lines.append([method, f"{of_method[sizes[0]]['acceptance_length']:.2f}", *cells])
    about = result["conditions"]
    note = (
        f"Medians of batches of 128 tokens, engines of all methods in alternating order: the time of a step, "
        f"its ratio to a plain one, tokens/s and speed-up. vLLM {about['versions']['vllm']}, torch "
        f"{about['versions']['torch']}, one {about['devices'][0]}: `{name}.json`."
    )
    return markdown(["method"], ["acceptance length", *(f"step, {size} at a time" for size in sizes)], lines, note)


TABLES: dict[str, Callable[[], str]] = {"methods": methods_table}
BENCHMARKS_TABLES: dict[str, Callable[[], str]] = {
    "demo": demo_table,
    "bench": lambda: bench_table("bench_cpu_bfloat16", plain_row=PLAIN_ROWS["bench"]),
    "bench_300m": lambda: bench_table("bench_300m_cpu_float32", plain_row=PLAIN_ROWS["bench_300m"]),
    "reference": lambda: bench_table(
        "reference_cpu_float32", "reference_cpu_bfloat16", plain_row=PLAIN_ROWS["reference"]
    ),
    "trees": lambda: trees_table("trees_cpu"),
    "trees_real_pair": lambda: trees_table("trees_real_pair_cpu"),
    "branch_rules": lambda: branch_rules_table(load("branch_rules_cpu")),
    "tree_builders": lambda: tree_builders_table("tree_builders_cpu"),
    "step_costs": lambda: step_costs_table(STEP_COSTS),
    "step_costs_pard2": lambda: step_costs_table(STEP_COSTS_PARD2),
    "users": lambda: users_table(USERS),
    "never_slower": lambda: never_slower_table("never_slower_cpu"),
    "real_pair": lambda: real_pair_table(load("real_pair_cpu")),
    "cod": lambda: cod_table(load("cod_cpu")),
    "pard2": lambda: pard2_table(load("pard2_cpu")),
    "losses": lambda: losses_table(load(LOSSES)),
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
