"""Write the README's tables from results/*.json, so that no number there is typed by hand.

python benchmarks/tables.py            # rewrite README.md
python benchmarks/tables.py --check    # exit 1 if README.md is not what the results say
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
DEMO_RESULTS = ("demo_cpu_float32_b1", "demo_cpu_bfloat16_b1", "demo_cpu_float32_b4")


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


def upstream_table() -> str:
    """Ours against vLLM's own parallel drafting."""
    result = load("upstream_cpu")
    ratio = result["pard"]["tokens_per_second"] / result["plain"]["tokens_per_second"]
    same = "the same outputs" if result["outputs_identical"] else "DIFFERENT outputs"
    return (
        f"Against vLLM's own `parallel_drafting` with the same pair on the same runner (V1, where both lay out a step "
        f"the same way): {ratio:.2f}x its tokens/s, {same} (`upstream_cpu.json`)."
    )


TABLES: dict[str, Callable[[], str]] = {"demo": demo_table, "upstream": upstream_table}


def render(text: str) -> str:
    """Replace what stands between `<!-- table:NAME -->` and `<!-- end -->`."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table:{name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, t=table: f"{m[1]}{t()}\n{m[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"README.md must hold one block <!-- table:{name} --> ... <!-- end -->; it holds {count}")
    return text


def main() -> int:
    current = README.read_text()
    wanted = render(current)
    if "--check" in sys.argv:
        return int(current != wanted)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
