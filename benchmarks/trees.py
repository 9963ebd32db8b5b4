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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from real_pair import Pair  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402

from vllm_pard.bench.prompt_sets import load_prompts  # noqa: E402
from vllm_pard.catalog import model_folder  # noqa: E402
from vllm_pard.checkpoint import load_config, load_tokenizer  # noqa: E402
from vllm_pard.conditions import conditions  # noqa: E402
from vllm_pard.demo import demo_path  # noqa: E402
from vllm_pard.pard2 import WantedMode  # noqa: E402
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

    @property
    def names(self) -> dict[str, str]:
        """How a result's rows call it."""
        return {"pair": self.pair, "task": Path(self.task).stem}


Measure = Callable[[Question, argparse.Namespace], Iterator[dict[str, Any]]]


@dataclass(frozen=True)
class Loaded:
    """A question's models, ready to be asked."""

    target: PreTrainedModel
    draft: PreTrainedModel
    drafting: ParallelDrafting
    prompts: list[list[int]]

    @classmethod
    def of(cls, question: Question, num_prompts: int, *, wanted: WantedMode = "auto") -> "Loaded":
        folder = model_folder(question.target)
        tokenizer = load_tokenizer(folder)
        drafting = ParallelDrafting.find(folder, load_config(folder), draft=question.draft, wanted=wanted)
        prompts = [
            prompt_token_ids(tokenizer, prompt.text, prompt.messages, enable_thinking=False)
            for prompt in load_prompts(question.task, num_prompts=num_prompts, seed=0).prompts
        ]
        target, draft = (load_model(name, "float32", "cpu") for name in (folder, drafting.checkpoint.path))
        return cls(target, draft, drafting, prompts)


def measure(question: Question, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each chain and tree, at each temperature."""
    loaded = Loaded.of(question, given.num_prompts)
    prompts = loaded.prompts
    for method, k, num_nodes in [("chain", k, 0) for k in CHAINS] + [("tree", DEPTH, n) for n in TREES]:
        engine = ReferenceEngine(
            loaded.target,
            loaded.draft,
            **loaded.drafting.options,
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
                eos_token_ids=eos_token_ids(loaded.target),
            )
            stats = reduce(add, (generation.stats for generation in found))
            yield question.names | {
                "method": method,
                "nodes": num_nodes or None,
                "num_speculative_tokens": k,
                "mode": loaded.drafting.mode,
                "temperature": temperature,
                "acceptance_length": round(stats.mean_acceptance_length, 4),
                "num_drafts": stats.num_drafts,
            }


def questions(real_pair: Path | None, tests: list[Path]) -> list[Question]:
    demo_draft = str(demo_path("draft"))
    asked = [Question(pair="demo", target="demo", draft=demo_draft, task=task) for task in DEMO_TASKS]
    if real_pair is not None:
        pair = Pair(real_pair.resolve(), Path(), ())
        for kind, name in (("pard", "real"), ("pard2", "real, PARD-2")):
            if (draft := pair.draft(kind)).exists():
                asked += [Question(name, str(pair.target), str(draft), str(test.resolve())) for test in tests]
    return asked


def run(measure: Measure, about: str | None, *, num_prompts: int, max_tokens: int) -> None:
    """A program that measures all questions of its command line; `about` and the numbers are its own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real-pair", type=Path, help="the folder of benchmarks/real_pair.py")
    parser.add_argument("--test", type=Path, nargs="+", default=[], help="what the real pair is asked, a file a task")
    parser.add_argument("--num-prompts", type=int, default=num_prompts)
    parser.add_argument("--max-tokens", type=int, default=max_tokens)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for question in questions(given.real_pair, given.test):
        for row in measure(question, given):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if given.json is not None:
        told = conditions() | {"num_prompts": given.num_prompts, "max_tokens": given.max_tokens, "dtype": "float32"}
        given.json.write_text(json.dumps({"conditions": told, "rows": rows}, indent=2) + "\n")


def main() -> None:
    run(measure, __doc__, num_prompts=32, max_tokens=128)


if __name__ == "__main__":
    main()
