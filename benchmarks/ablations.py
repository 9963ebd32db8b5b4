"""What COD, the losses and PARD-2's features are worth, on one target and one set of its answers.

python benchmarks/ablations.py cod --target T --answers answers.jsonl --json benchmarks/results/cod_cpu.json
python benchmarks/ablations.py losses --target T --answers answers.jsonl --json benchmarks/results/losses_cpu.json

T and its answers are those of benchmarks/real_pair.py. All drafts start from the same one: layers of the target after
next-token training (`--start`, else one is trained). Acceptance is that of greedy decoding on held-out answers, K = the
number of depths.

cod      rows through the draft and seconds to the same acceptance length, with COD, with all masks, and with random
         drops that break chains (control)
losses   acceptance length after the same number of steps: cross-entropy, with KL, CAT, D-PACE, LK, TV; PARD and PARD-2;
         with each dropout of the features

A file that has other seeds of the same settings gets these ones beside them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from vllm_pard.bench.pictures import Picture, Point  # noqa: E402
from vllm_pard.conditions import conditions, portable  # noqa: E402
from vllm_pard.silence import without_progress_bars  # noqa: E402
from vllm_pard.training.cod.collator import Collator  # noqa: E402
from vllm_pard.training.cod.rows import Rows  # noqa: E402
from vllm_pard.training.options.train_config import from_mapping  # noqa: E402
from vllm_pard.training.run import train  # noqa: E402

COD = {"retention": 0.7, "min_retention": 0.1}  # as PARD-2, with as many depths
ALL = {"retention": 1.0, "min_retention": 1.0}
CE: dict[str, Any] = {"ce": 1.0}
CE_KL: dict[str, Any] = {"ce": 0.1, "kl": 1.0}
CAT = CE_KL | {"weights": "cat"}
LOSSES: dict[str, dict[str, Any]] = {
    "ce": CE,
    "d-pace": CE | {"weights": "d-pace"},
    "ce + kl": CE_KL,
    "ce + kl, cat": CAT,
    "ce + kl, d-pace": CE_KL | {"weights": "d-pace"},
    "tv": {"ce": 0.1, "tv": 1.0},
    "lk": {"ce": 0.1, "lk": 1.0},
}
DROPOUTS = (0.0, 0.1, 0.3)
# What runs of different seeds in one file have in common.
SETTINGS = (
    *("what", "layers", "draft_vocab", "feature_layers", "depths", "max_length", "batch_size", "steps", "evaluations"),
    *("held_out", "learning_rate"),
)


class BrokenChains(Collator):
    """The control: as many rows as COD keeps at each depth, but drawn alone, so that most lack their chain."""

    def rows(self, tokens: Tensor, documents: Tensor, lengths: Tensor, generators: Sequence[torch.Generator]) -> Rows:
        whole = super().rows(tokens, documents, lengths, generators)
        shares = torch.tensor(
            [max(COD["retention"] ** depth, COD["min_retention"]) for depth in range(self.cod.num_depths)]
        )
        drawn = torch.rand(len(whole.depths), generator=generators[0])
        is_kept = (whole.depths == 0) | (drawn < shares[whole.depths.clamp(max=self.cod.num_depths - 1)])
        return whole.at(is_kept)


def options(given: argparse.Namespace, name: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A training config; what is not under test is the same for all."""
    trainer = {
        "learning_rate": given.learning_rate,
        "max_steps": given.steps,
        "save_steps": max(1, given.steps // given.evaluations),
        "per_device_train_batch_size": given.batch_size,
        "logging_steps": max(1, given.steps // 20),
        "save_total_limit": 1,
        "lr_scheduler_type": "constant_with_warmup",
        "report_to": [],
    }
    return {
        "target": str(given.target),
        "output": str(given.work / f"{name}-{seed}"),
        "data": {"sources": [{"path": str(given.answers)}], "max_length": given.max_length},
        "draft_vocab": given.draft_vocab,
        "freeze_embeddings": True,
        "cod": COD | {"num_depths": given.depths},
        "evaluation": {"num_documents": given.held_out},
        "seed": seed,
        "dtype": "float32",
        "trainer": trainer,
    } | changes


def run(given: dict[str, Any], collator: type[Collator] = Collator) -> dict[str, Any]:
    """Train, or find what was trained before; the receipt."""
    folder = Path(given["output"])
    if not (folder / "receipt.json").exists():
        print(f"-- {folder.name}", flush=True)
        with without_progress_bars():
            train(from_mapping(given), lambda line: print(line, flush=True), collator=collator)
    receipt: dict[str, Any] = json.loads((folder / "receipt.json").read_text())
    return receipt


def start(given: argparse.Namespace, seed: int) -> str:
    """The draft that all runs of a seed start from."""
    if given.start is not None:
        return str(given.start)
    name = f"start-{seed}"
    changes = {"prune_layers": given.layers, "cod": {"num_depths": 1}, "loss": CE_KL}
    whole = options(given, "start", seed, **changes)
    whole["trainer"] |= {"max_steps": given.start_steps, "save_steps": given.start_steps}
    run(whole)
    return str(given.work / name)


def points(receipt: dict[str, Any]) -> list[dict[str, Any]]:
    """Each evaluation of a run."""
    return [
        {
            "num_rows": entry["eval_num_rows"],
            "seconds": entry["eval_seconds"],
            "acceptance_length": entry["eval_acceptance_length"],
            "acceptance_length_everywhere": entry["eval_acceptance_length_everywhere"],
        }
        for entry in receipt["log"]
        if "eval_acceptance_length" in entry
    ]


def measure_cod(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for seed in given.seeds:
        draft = start(given, seed)
        for method, cod, collator in (
            ("cod", COD, Collator),
            ("all masks", ALL, Collator),
            ("random drops", ALL, BrokenChains),
        ):
            changes = {"draft": draft, "cod": cod | {"num_depths": given.depths}}
            receipt = run(options(given, method.replace(" ", "-"), seed, **changes), collator)
            rows += [{"method": method, "seed": seed, **point} for point in points(receipt)]
    return rows


def cost_to_reach(rows: list[dict[str, Any]], length: float, what: str) -> float | None:
    """Where a curve first reaches an acceptance length, between its points; None if it never does."""
    before = {what: 0.0, "acceptance_length_everywhere": 1.0}
    for row in rows:
        if row["acceptance_length_everywhere"] >= length:
            rise = row["acceptance_length_everywhere"] - before["acceptance_length_everywhere"]
            share = (length - before["acceptance_length_everywhere"]) / rise if rise > 0 else 1.0
            return float(before[what] + share * (row[what] - before[what]))
        before = row
    return None


def summary_of_cod(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each method pays for the acceptance length that the others have reached as well."""
    found = []
    for seed in sorted({row["seed"] for row in rows}):
        curves = {m: [r for r in rows if (r["method"], r["seed"]) == (m, seed)] for m in ("cod", "all masks")}
        length = min(max(row["acceptance_length_everywhere"] for row in curve) for curve in curves.values())
        costs = {
            method: {what: cost_to_reach(curve, length, what) for what in ("num_rows", "seconds")}
            for method, curve in curves.items()
        }
        ratios = {what: costs["all masks"][what] / costs["cod"][what] for what in ("num_rows", "seconds")}  # type: ignore[operator]
        found.append({"seed": seed, "acceptance_length_everywhere": length, "costs": costs, "all_masks_to_cod": ratios})
    return found


def measure_losses(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for seed in given.seeds:
        draft = start(given, seed)
        plans: list[tuple[str, dict[str, Any], float | None]] = [(name, loss, None) for name, loss in LOSSES.items()]
        plans += [("ce + kl, cat", CAT, dropout) for dropout in DROPOUTS]
        for loss_name, loss, dropout in plans:
            features = None if dropout is None else {"layers": given.feature_layers, "dropout": dropout}
            name = f"{loss_name}-{'pard' if dropout is None else f'pard2-{dropout}'}".replace(" ", "").replace(",", "-")
            receipt = run(options(given, name, seed, draft=draft, loss=loss, features=features))
            last = [entry for entry in receipt["log"] if "eval_acceptance_length" in entry][-1]
            modes = [("pard", "")] if dropout is None else [("dependent", ""), ("independent", "_independent")]
            rows += [
                {
                    "loss": loss_name,
                    "mode": mode,
                    "dropout": dropout,
                    "acceptance_length": last[f"eval_acceptance_length{suffix}"],
                    "acceptance_length_everywhere": last[f"eval_acceptance_length_everywhere{suffix}"],
                    "seed": seed,
                    "num_rows": last["eval_num_rows"],
                    "seconds": last["eval_seconds"],
                }
                for mode, suffix in modes
            ]
    return rows


def summary_of_losses(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and extremes over the seeds."""
    kinds = dict.fromkeys((row["loss"], row["mode"], row["dropout"]) for row in rows)
    found = []
    for loss, mode, dropout in kinds:
        lengths = [
            row["acceptance_length"]
            for row in rows
            if (row["loss"], row["mode"], row["dropout"]) == (loss, mode, dropout)
        ]
        spread = {"mean": round(mean(lengths), 4), "min": min(lengths), "max": max(lengths)}
        found.append({"loss": loss, "mode": mode, "dropout": dropout, "acceptance_length": spread})
    return found


def picture(rows: list[dict[str, Any]]) -> Picture:
    """Acceptance by rows through the draft."""
    methods = dict.fromkeys(row["method"] for row in rows)
    series = {
        method: [
            Point(row["num_rows"], row["acceptance_length_everywhere"])
            for row in rows
            if (row["method"], row["seed"]) == (method, rows[0]["seed"])
        ]
        for method in methods
    }
    return Picture(
        name="cod",
        title="Training with COD, with all masks, and with broken chains",
        x_title="rows through the draft",
        y_title="acceptance length on held-out answers",
        x_axis="numbers",
        series=series,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cod", "losses"))
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a draft of the next token")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="of cod, a PNG file")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--draft-vocab", type=int, default=4096)
    parser.add_argument("--feature-layers", type=json.loads, default=[-1, -8, -16, -24])
    parser.add_argument("--depths", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--start-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=json.loads, default=[0, 1, 2], help="such as [0, 1]")
    given = parser.parse_args()
    given.work = (given.work or Path("runs") / given.what).resolve()
    return given


def earlier(path: Path | None, about: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Conditions and rows of the other seeds that a file has."""
    if path is None or not path.exists():
        return [], []
    found = json.loads(path.read_text())
    for other in found["conditions"]:
        if different := [name for name in SETTINGS if other["options"][name] != about["options"][name]]:
            raise SystemExit(f"{path} was measured with another {', '.join(different)}: give another --json")
    seeds = about["options"]["seeds"]
    kept = [other for other in found["conditions"] if not set(other["options"]["seeds"]) <= set(seeds)]
    return kept, [row for row in found["rows"] if row["seed"] not in seeds]


def main() -> None:
    given = arguments()
    told = {name: portable(str(value)) if isinstance(value, Path) else value for name, value in vars(given).items()}
    about = conditions() | {"num_threads": torch.get_num_threads(), "options": told}
    earlier(given.json, about)  # before hours are spent; again after them, since other seeds may run beside these
    measure, summarise = MEASUREMENTS[given.what]
    measured = measure(given)
    others, rows = earlier(given.json, about)
    rows = sorted([*rows, *measured], key=lambda row: row["seed"])
    summary = summarise(rows)
    print(json.dumps(summary, indent=2))
    if given.json is not None:
        runs = sorted([*others, about], key=lambda run: run["options"]["seeds"])
        result = {"conditions": runs, "rows": rows, "summary": summary}
        given.json.write_text(json.dumps(result, indent=2) + "\n")
    if given.plot is not None and given.what == "cod":
        from vllm_pard.bench.plots import draw

        draw(picture(rows), given.plot)


MEASUREMENTS = {"cod": (measure_cod, summary_of_cod), "losses": (measure_losses, summary_of_losses)}

if __name__ == "__main__":
    main()
