"""Tables of what training brings, from results/*.json."""

from typing import Any

from bench_tables import markdown

LOSSES = "losses_nvidia_h200"


def real_pair_table(result: dict[str, Any]) -> str:
    """A row a draft: what it was trained for and is accepted with, and how fast it decodes."""
    rows = result["rows"]
    tasks = list(dict.fromkeys(row["task"] for row in rows if "training_seconds" in row))
    accepted = {(row["method"], row["task"]): row for row in rows if "training_seconds" in row}
    served = {row["method"]: row for row in rows if "tokens_per_second" in row and row["task"] == tasks[0]}
    lines = []
    for method in dict.fromkeys([*served, *(method for method, _ in accepted)]):
        of_tasks = [accepted.get((method, task)) for task in tasks]
        lengths = ["" if row is None else f"{row['acceptance_length']:.2f}" for row in of_tasks]
        minutes = f"{of_tasks[0]['training_seconds'] / 60:.0f}" if of_tasks[0] is not None else ""
        speed = served.get(method)
        speeds = [f"{speed['tokens_per_second']:.1f}", f"**{speed['speed_up']:.2f}x**"] if speed else ["", ""]
        lines.append([method, minutes, *lengths, *speeds])
    titles = ["training, minutes", *(f"acceptance length, {task}" for task in tasks), "tokens/s", "speed-up"]
    return markdown(["draft"], titles, lines)


def cod_table(result: dict[str, Any]) -> str:
    """A row a seed: where each method ends, and what all masks cost to get where both have been."""
    lines = []
    for found in result["summary"]:
        ends = [
            [row for row in result["rows"] if (row["seed"], row["method"]) == (found["seed"], method)][-1]
            for method in ("cod", "all masks", "random drops")
        ]
        lengths = [f"{end['acceptance_length_everywhere']:.3f}" for end in ends]
        rows = [f"{found['costs'][method]['num_rows']:,.0f}" for method in ("cod", "all masks")]
        ratios = [f"**{found['all_masks_to_cod'][of]:.1f}**" for of in ("num_rows", "seconds")]
        lines.append([found["seed"], *lengths, f"{found['acceptance_length_everywhere']:.3f}", *rows, *ratios])
    note = f"{_steps(result['conditions'][0]['options'])}, cross-entropy: `cod_cpu.json`."
    ends_titles = ["at the end: COD", "all masks", "random drops", "both reach"]
    costs_titles = ["rows, COD", "rows, all masks", "all masks : COD, rows", "seconds"]
    return markdown([], ["seed", *ends_titles, *costs_titles], lines, note)


def losses_table(result: dict[str, Any]) -> str:
    """A row a loss, mode and dropout; a column a seed."""
    rows = result["rows"]
    seeds = sorted({row["seed"] for row in rows})
    lines = []
    for found in result["summary"]:
        kind = {name: found[name] for name in ("loss", "mode", "dropout")}
        lengths = {row["seed"]: row["acceptance_length"] for row in rows if kind.items() <= row.items()}
        draft = "PARD" if found["mode"] == "pard" else f"PARD-2, {found['mode']}"
        dropout = "" if found["dropout"] is None else f"{found['dropout']:g}"
        of_seeds = [*(lengths[seed] for seed in seeds), found["acceptance_length"]["mean"]]
        lines.append([found["loss"], draft, dropout, *(f"{length:.3f}" for length in of_seeds)])
    about = result["conditions"][0]
    note = f"{_steps(about['options'])}, one {about['devices'][0]}: `{LOSSES}.json`."
    titles = ["dropout of the features", *(f"seed {seed}" for seed in seeds), "mean"]
    return markdown(["loss", "draft"], titles, lines, note)


def pard2_table(result: dict[str, Any]) -> str:
    """A row a draft, mode and K; for each task how many tokens a step brings, beside PARD's with the same K."""
    rows = [row for row in result["rows"] if row["method"] in ("pard", "pard2")]
    tasks = list(dict.fromkeys((row["pair"], row["task"]) for row in rows))
    lines = []
    kinds = sorted(
        {(row["num_speculative_tokens"], row["method"], row["mode"]) for row in rows},
        key=lambda kind: (kind[0], kind[1], kind[2] == "dependent"),
    )
    for k, method, mode in kinds:
        lengths = {
            (row["pair"], row["task"], row["method"], row["mode"]): row["acceptance_length"]
            for row in rows
            if row["num_speculative_tokens"] == k
        }
        cells = []
        for task in tasks:
            length, of_pard = lengths.get((*task, method, mode)), lengths.get((*task, "pard", None))
            gain = f" ({length / of_pard - 1:+.0%})" if method == "pard2" and length and of_pard else ""
            cells.append(f"{length:.2f}{gain}" if length else "")
        name = "PARD" if method == "pard" else f"PARD-2, {mode}"
        lines.append([name, k, *cells])
    titles = ["K", *(f"{pair}, {task.removeprefix('demo:')}" for pair, task in tasks)]
    note = "Mean acceptance lengths, and PARD-2's gain on PARD with the same K: `pard2_cpu.json`."
    return markdown(["draft"], titles, lines, note)


def _steps(options: dict[str, Any]) -> str:
    return (
        f"{options['steps']} steps of {options['batch_size']} rows of {options['max_length']} tokens, K = "
        f"{options['depths']}"
    )
