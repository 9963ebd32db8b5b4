"""What trees of draft tokens are worth beside chains: acceptance in true decoding by the reference engine.

python benchmarks/trees.py --json benchmarks/results/trees_cpu.json \
    [--real-pair runs/real_pair --test gsm8k_test.jsonl]    # what benchmarks/real_pair.py has trained

One draft forward a step in any case: a chain takes the likeliest token of each of its K depths, a tree of N nodes the N
likeliest paths through the same K distributions. Greedy and sampled, in float32, on questions whose templates the demo
pair has not been trained on.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from real_pair import Pair  # noqa: E402

from vllm_pard.bench.prompt_sets import load_prompts  # noqa: E402
from vllm_pard.catalog import model_folder  # noqa: E402
from vllm_pard.checkpoint import load_config, load_tokenizer  # noqa: E402
from vllm_pard.conditions import conditions  # noqa: E402
from vllm_pard.demo import demo_path  # noqa: E402
from vllm_pard.prompts import prompt_token_ids  # noqa: E402
from vllm_pard.reference.drafting import ParallelDrafting  # noqa: E402
from vllm_pard.reference.engine import ReferenceEngine  # noqa: E402
from vllm_pard.reference.models import eos_token_ids, load_model  # noqa: E402

CHAINS, TREES, DEPTH = (8, 15), (8, 16, 32, 60), 15
TEMPERATURES = (0.0, 1.0)
DEMO_TASKS = ("demo:unseen_word_problems", "demo:unseen_code")


@dataclass(frozen=True)
class Question:
    """A pair of models, and what it is asked."""

    pair: str
    target: str
    draft: str
    task: str


def measure(question: Question, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each chain and tree, at each temperature."""
    target = model_folder(question.target)
    tokenizer = load_tokenizer(target)
    prompts = [
        prompt_token_ids(tokenizer, prompt.text, prompt.messages, enable_thinking=False)
        for prompt in load_prompts(question.task, num_prompts=given.num_prompts, seed=0).prompts
    ]
    drafting = ParallelDrafting.find(target, load_config(target), draft=question.draft, wanted="auto")
    models = (
        load_model(target, "float32", "cpu"),
        load_model(question.draft, "float32", "cpu"),
    )
    rows = []
    for method, k, num_nodes in [("chain", k, 0) for k in CHAINS] + [("tree", DEPTH, n) for n in TREES]:
        engine = ReferenceEngine(
            *models,
            **drafting.options,
            num_speculative_tokens=k,
            num_tree_nodes=num_nodes,
            batch_size=len(prompts),
            max_length=max(map(len, prompts)) + given.max_tokens,
        )
        for temperature in TEMPERATURES:
            found = engine.generate(
                prompts,
                max_new_tokens=given.max_tokens,
                temperature=temperature,
                eos_token_ids=eos_token_ids(models[0]),
            )
            stats = reduce(add, (generation.stats for generation in found))
            rows.append(
                {
                    "pair": question.pair,
                    "task": Path(question.task).stem,
                    "method": method,
                    "nodes": num_nodes or None,
                    "num_speculative_tokens": k,
                    "mode": drafting.mode,
                    "temperature": temperature,
                    "acceptance_length": round(stats.mean_acceptance_length, 4),
                    "num_drafts": stats.num_drafts,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def questions(real_pair: Path | None, tests: list[Path]) -> list[Question]:
    draft = str(demo_path("draft"))
    asked = [Question(pair="demo", target="demo", draft=draft, task=task) for task in DEMO_TASKS]
    if real_pair is not None:
        pair = Pair(real_pair.resolve(), Path(), ())
        for kind in ("pard", "pard2"):
            asked += [Question("real", str(pair.target), str(pair.draft(kind)), str(test.resolve())) for test in tests]
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real-pair", type=Path, help="the folder of benchmarks/real_pair.py")
    parser.add_argument("--test", type=Path, nargs="+", default=[], help="what the real pair is asked, a file a task")
    parser.add_argument("--num-prompts", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = [row for question in questions(given.real_pair, given.test) for row in measure(question, given)]
    if given.json is not None:
        about = conditions() | {"num_prompts": given.num_prompts, "max_tokens": given.max_tokens, "dtype": "float32"}
        given.json.write_text(json.dumps({"conditions": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
