"""What PARD-2's features are worth in vLLM: the same drafts with and without them, beside PARD's, in alternating runs.

python benchmarks/pard2.py --json benchmarks/results/pard2_cpu.json \
    [--real-pair runs/real_pair --test gsm8k_test.jsonl]    # what benchmarks/real_pair.py has trained

Greedy, one request at a time, in float32. Of the demo pair, on questions whose templates it has not been trained on. A
draft was trained for the smaller K; at the larger one it goes on beyond its depths.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from real_pair import Pair, rows_of_bench  # noqa: E402

from vllm_pard.conditions import conditions  # noqa: E402
from vllm_pard.demo import demo_path  # noqa: E402

DEMO_TASKS = ("demo:unseen_word_problems", "demo:unseen_code")
DEMO_KS, REAL_KS = (8, 15), (5, 15)


@dataclass(frozen=True)
class Question:
    """A target, its drafts, and what they are asked."""

    pair: str
    target: str
    draft_ar: Path
    draft: Path
    draft_pard2: Path
    task: str
    ks: tuple[int, ...]

    @property
    def methods(self) -> list[tuple[dict[str, Any], str]]:
        """What each row is called, and its method of `vllm-pard bench`, plain decoding first."""
        of_each_k: list[tuple[str, str | None, str]] = [
            ("next token", None, f"draft_model={self.draft_ar}"),
            ("pard", None, f"pard={self.draft}"),
            ("pard2", "independent", f"pard+independent={self.draft_pard2}"),
            ("pard2", "dependent", f"pard={self.draft_pard2}"),
        ]
        rows = [
            ({"method": method, "mode": mode, "num_speculative_tokens": k}, f"{served}:{k}")
            for k in self.ks
            for method, mode, served in of_each_k
            if method != "next token" or k == self.ks[0]  # which pays K forwards
        ]
        return [({"method": "none", "mode": None, "num_speculative_tokens": 0}, "none"), *rows]


def questions(real_pair: Path | None, tests: list[Path]) -> list[Question]:
    demo = {name: demo_path(name) for name in ("draft_ar", "draft", "draft_pard2")}
    asked = [Question(pair="demo", target="demo", **demo, task=task, ks=DEMO_KS) for task in DEMO_TASKS]
    if real_pair is not None:
        pair = Pair(real_pair.resolve(), Path(), ())
        drafts = {"draft_ar": pair.draft("next_token"), "draft": pair.draft("pard"), "draft_pard2": pair.draft("pard2")}
        for test in tests:
            asked.append(Question(pair="real", target=str(pair.target), **drafts, task=str(test.resolve()), ks=REAL_KS))
    return asked


def measure(question: Question, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a method."""
    result = given.work / f"{question.pair}_{Path(question.task.replace(':', '_')).stem}.json"
    if not result.exists():
        words = ["bench", question.target, "--methods", ",".join(method for _, method in question.methods)]
        words += ["--prompts", question.task, "--num-prompts", str(given.num_prompts), "--runs", str(given.runs)]
        words += ["--max-tokens", "128", "--dtype", "float32", "--verify", "--json", str(result)]
        words += ["--engine-args", '{"max_model_len": 512}']
        print("$ vllm-pard", *words, flush=True)
        subprocess.run([sys.executable, "-m", "vllm_pard.cli", *words], check=True, cwd=ROOT)
    served = json.loads(result.read_text())
    keys = [key for key, _ in question.methods]
    found = rows_of_bench(served, [str(key["method"]) for key in keys])
    return [
        {"pair": question.pair, "task": Path(question.task).stem} | row | key
        for key, row in zip(keys, found, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real-pair", type=Path, help="the folder of benchmarks/real_pair.py")
    parser.add_argument("--test", type=Path, nargs="+", default=[], help="what the real pair is asked, a file a task")
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/pard2"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows = [row for question in questions(given.real_pair, given.test) for row in measure(question, given)]
    print(json.dumps(rows, indent=2))
    if given.json is not None:
        about = conditions() | {"num_prompts": given.num_prompts, "runs": given.runs}
        given.json.write_text(json.dumps({"conditions": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
