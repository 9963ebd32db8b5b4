"""Tables of what is drafted, from results/*.json: trees beside chains, how they are built and verified."""

from typing import Any

from bench_tables import load, markdown


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
