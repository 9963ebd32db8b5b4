"""Tables of what is drafted, from results/*.json: trees beside chains, how they are built and verified, the choice."""

from typing import Any

from bench_tables import load, markdown

TITLES = {"none": "plain", "pard:2": "K = 2", "pard:4": "K = 4", "pard:8": "K = 8", "pard+auto:8": "auto"}


def trees_table(name: str) -> str:
    """Acceptance lengths of `benchmarks/trees.py`: a line a chain or tree, a column a task and temperature."""
    result = load(name)
    rows = result["rows"]
    columns = list(dict.fromkeys((row["pair"], row["task"], row["temperature"]) for row in rows))
    titles = [_title(*column) for column in columns]
    lines = []
    for method, k, nodes in dict.fromkeys((row["method"], row["num_speculative_tokens"], row["nodes"]) for row in rows):
        cells = {
            (row["pair"], row["task"], row["temperature"]): f"{row['acceptance_length']:.2f}"
            for row in rows
            if (row["method"], row["num_speculative_tokens"], row["nodes"]) == (method, k, nodes)
        }
        drafts = f"chain, K = {k}" if method == "chain" else f"tree of {nodes} nodes, K = {k}"
        lines.append([drafts, *(cells[column] for column in columns)])
    about = result["conditions"]
    note = (
        f"Mean acceptance lengths over {about['num_prompts']} prompts, up to {about['max_tokens']} tokens: "
        f"`{name}.json`."
    )
    return markdown(["drafts"], titles, lines, note)


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


def tree_builders_table(name: str, num_nodes: int = 32) -> str:
    """Acceptance lengths of `benchmarks/tree_builders.py`: a line a builder, a column a task and temperature."""
    result = load(name)
    rows = [row for row in result["rows"] if row["nodes"] == num_nodes]
    columns = list(dict.fromkeys((row["pair"], row["task"], row["temperature"]) for row in rows))
    lines = []
    for builder in dict.fromkeys(row["builder"] for row in rows):
        cells = {
            (row["pair"], row["task"], row["temperature"]): f"{row['acceptance_length']:.2f}"
            for row in rows
            if row["builder"] == builder
        }
        lines.append([builder, *(cells[column] for column in columns)])
    note = f"Trees of {num_nodes} nodes over {result['conditions']['num_prompts']} answers: `{name}.json`."
    return markdown(["builder"], [_title(*column) for column in columns], lines, note)


def _title(pair: str, task: str, temperature: float) -> str:
    return f"{pair}, {task.removeprefix('demo:')}, {'greedy' if temperature == 0 else f'T = {temperature:g}'}"


def never_slower_table(result: dict[str, Any]) -> str:
    """Speeds of `benchmarks/never_slower.py`: a line a pair and concurrency, a column a method."""
    rows = result["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = []
    for pair, concurrency in dict.fromkeys((row["pair"], row["concurrency"]) for row in rows):
        found = {row["method"]: row for row in rows if (row["pair"], row["concurrency"]) == (pair, concurrency)}
        best = max(row["tokens_per_second"] for method, row in found.items() if method != methods[-1])
        cells = [
            f"{found[method]['tokens_per_second']:.0f}, **{found[method]['ratio_to_none']:.2f}x**" for method in methods
        ]
        chosen = found[methods[-1]]["tokens_per_second"]
        lines.append([pair, concurrency, *cells, f"{chosen / best:.2f}"])
    titles = ["at a time", *(TITLES.get(method, method) for method in methods), "auto / best fixed"]
    return markdown(["pair"], titles, lines, "Tokens/s, and their ratio to plain decoding: `never_slower_cpu.json`.")
