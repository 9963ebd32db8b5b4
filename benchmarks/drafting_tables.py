"""Tables of what is drafted, from results/*.json: trees beside chains, how they are built and verified."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from bench_tables import load, markdown

Row = dict[str, Any]


def trees_table(name: str) -> str:
    """Acceptance lengths of `benchmarks/trees.py`: a line a chain or tree, a column a task and temperature."""
    result = load(name)
    about = result["conditions"]
    note = (
        f"Mean acceptance lengths over {about['num_prompts']} prompts, up to {about['max_tokens']} tokens: "
        f"`{name}.json`."
    )
    return _lengths_table("drafts", _drafts, result["rows"], note)


def tree_builders_table(name: str, num_nodes: int = 32) -> str:
    """Acceptance lengths of `benchmarks/tree_builders.py`: a line a builder, a column a task and temperature."""
    result = load(name)
    rows = [row for row in result["rows"] if row["nodes"] == num_nodes]
    note = f"Trees of {num_nodes} nodes over {result['conditions']['num_prompts']} answers: `{name}.json`."
    return _lengths_table("builder", itemgetter("builder"), rows, note)


def branch_rules_table(result: dict[str, Any]) -> str:
    """Chances of `benchmarks/branch_rules.py`: a line a task, temperature and depth, a column a number of drafts."""
    rows = result["rows"]
    numbers = list(dict.fromkeys(row["branches"] for row in rows))
    lines = []
    for task, temperature, depth in dict.fromkeys((row["task"], row["temperature"], row["depth"]) for row in rows):
        cells = [
            f"{row['descent']:.1%} / {row['without_replacement']:.1%}"
            for row in rows
            if (row["task"], row["temperature"], row["depth"]) == (task, temperature, depth)
        ]
        name = f"{task.removeprefix('demo:')}, T = {temperature:g}"
        lines.append([name, depth, *cells])
    titles = ["depth", *(f"{number} draft{'s' * (number > 1)}" for number in numbers)]
    return markdown(["task"], titles, lines, "Descent / draws without replacement: `branch_rules_cpu.json`.")


def never_slower_table(name: str) -> str:
    """Speeds of `benchmarks/never_slower.py`: a line a pair and concurrency, a column a method; how good auto is."""
    rows = load(name)["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = []
    for pair, concurrency in dict.fromkeys((row["pair"], row["concurrency"]) for row in rows):
        found = {row["method"]: row for row in rows if (row["pair"], row["concurrency"]) == (pair, concurrency)}
        speeds = [found[method]["tokens_per_second"] for method in methods]
        cells = [_speed(found[method], "ratio_to_none") for method in methods]
        lines.append([pair, concurrency, *cells, f"{speeds[-1] / max(speeds[:-1]):.2f}"])
    titles = ["at a time", *methods, f"{methods[-1]} / best other"]
    return markdown(["pair"], titles, lines, f"Tokens/s, and their ratio to plain decoding: `{name}.json`.")


def users_table(name: str) -> str:
    """Speeds of `benchmarks/users.py`: a line a number of users, a column a method."""
    rows = load(name)["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [
        [number, *(_speed(row, "speed_up") for row in rows if row["concurrency"] == number)]
        for number in dict.fromkeys(row["concurrency"] for row in rows)
    ]
    return markdown([], ["users", *methods], lines, f"Tokens/s, and their ratio to plain decoding: `{name}.json`.")


def _speed(row: Row, ratio: str) -> str:
    return f"{row['tokens_per_second']:,.0f}, **{row[ratio]:.2f}x**"


def _lengths_table(title: str, line_of: Callable[[Row], str], rows: list[Row], note: str) -> str:
    """Acceptance lengths, a line for each that `line_of` tells apart, a column a task and temperature."""
    lines: dict[str, dict[tuple[Any, ...], str]] = {}
    for row in rows:
        column = row["pair"], row["task"], row["temperature"]
        lines.setdefault(line_of(row), {})[column] = f"{row['acceptance_length']:.2f}"
    columns = list(dict.fromkeys(column for cells in lines.values() for column in cells))
    titles = [
        f"{pair}, {task.removeprefix('demo:')}, {'greedy' if temperature == 0 else f'T = {temperature:g}'}"
        for pair, task, temperature in columns
    ]
    return markdown(
        [title], titles, [[line, *(cells[column] for column in columns)] for line, cells in lines.items()], note
    )


def _drafts(row: Row) -> str:
    k = f"K = {row['num_speculative_tokens']}"
    return f"chain, {k}" if row["method"] == "chain" else f"tree of {row['nodes']} nodes, {k}"
