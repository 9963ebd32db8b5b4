"""The stages of the demo pair in their order. Each has a folder, and is finished when its receipt is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from vllm_pard.catalog import DEMO_MARKER
from vllm_pard.errors import PardError
from vllm_pard.files import check_folder
from vllm_pard.training.demo_pair import bundle
from vllm_pard.training.demo_pair.answers import answer_records
from vllm_pard.training.demo_pair.recipe import DemoPairConfig, RunConfig, TextConfig
from vllm_pard.training.demo_pair.text import chat_records, digest, make_tokenizer, write_model_config, write_records
from vllm_pard.training.models.starting_points import load_model
from vllm_pard.training.options.train_config import TrainConfig
from vllm_pard.training.output.receipt import environment, write_json
from vllm_pard.training.output.run_folder import RUN
from vllm_pard.training.run import train

__all__ = ["COMMAND", "STAGES", "DemoPairError", "make_demo_pair"]

COMMAND = "python -m vllm_pard.training.demo_pair"
STAGES = ("text", "target", "draft_ar", "draft_text", "answers", "draft", "draft_pard2", "evaluation")
RECEIPT, DOCUMENTS, ANSWERS = "receipt.json", "documents.jsonl", "answers.jsonl"

Report = Callable[[str], None]
Result = dict[str, Any]
Record = dict[str, Any]


class DemoPairError(PardError):
    """The demo pair can't be made like this."""


def make_demo_pair(config: DemoPairConfig, root: Path, report: Report) -> Path:
    """Run all stages that are not finished, and go on with the one that was interrupted.

    Returns:
        The folder with what the package ships.

    Raises:
        PardError: the folder can't be written to, or holds the stages of another recipe or another text.
    """
    check_folder(root)
    stages = _Stages(root, report)
    shipped = root / "bundle"
    records = chat_records(config.text)
    text = asdict(config.text) | {"digest": digest(records)}
    stages.run("text", text, lambda folder: _write_text(config.text, records, folder))
    documents, tokenizer = root / "text" / DOCUMENTS, PreTrainedTokenizerFast.from_pretrained(root / "text")
    new_target, new_draft = (
        str(write_model_config(size, tokenizer, root / "models")) for size in (config.target_size, config.draft_size)
    )
    target = stages.train("target", config.target, documents, new_model=new_target)
    # The catalog knows the demo target by this key, whatever its folder is called.
    bundle.export(target, shipped / "target", keys={DEMO_MARKER: True})
    draft_ar = stages.train("draft_ar", config.draft_ar, documents, new_model=new_draft)
    bundle.export(draft_ar, shipped / "draft_ar")
    draft_text = stages.train("draft_text", config.draft_text, documents, draft=str(draft_ar))

    def answer(folder: Path) -> Result:
        model = load_model(str(shipped / "target"), torch.float32)
        if torch.cuda.is_available():
            model = model.cuda()
        records = answer_records(config.answers, model, tokenizer, report)
        write_records(folder / ANSWERS, records)
        return {"num_questions": len(records), "num_ended": sum(each["finish_reason"] == "stop" for each in records)}

    stages.run("answers", asdict(config.answers), answer)
    answers = root / "answers" / ANSWERS
    draft = stages.train("draft", config.draft, answers, draft=str(draft_text))
    bundle.export(draft, shipped / "draft", is_pard=True)
    reads_target = {"draft": str(draft_text), "target": str(shipped / "target")}
    draft_pard2 = stages.train("draft_pard2", config.draft_pard2, answers, **reads_target)
    bundle.export(draft_pard2, shipped / "draft_pard2", is_pard=True)
    evaluation = config.evaluation
    stages.run("evaluation", asdict(evaluation), lambda folder: bundle.evaluate(evaluation, shipped, tokenizer))
    bundle.write_receipts([bundle.shipped_receipt(root, name, COMMAND) for name in STAGES], shipped)
    return shipped


def _write_text(config: TextConfig, records: list[Record], folder: Path) -> Result:
    tokenizer = make_tokenizer(config)
    tokenizer.save_pretrained(folder)
    write_records(folder / DOCUMENTS, records)
    return {"vocab_size": len(tokenizer)}


@dataclass(frozen=True)
class _Stages:
    root: Path
    report: Report

    def run(self, name: str, asked: dict[str, Any], body: Callable[[Path], Result]) -> None:
        """A stage that is done at once or not at all."""
        folder = self.root / name
        if finished := _read(folder):
            if finished["config"] != asked:
                raise DemoPairError(
                    f"the stage {name} in {str(self.root)!r} must be of this recipe and this text; it is of another: "
                    "give another --output"
                )
            self.report(f"{name}: finished before")
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.report(f"{name}: started")
        started = time.monotonic()
        result = body(folder)
        receipt = {
            "stage": name,
            "config": asked,
            "environment": environment(COMMAND),
            "wall_time_s": round(time.monotonic() - started, 1),
            "result": result,
        }
        write_json(folder / RECEIPT, receipt)

    def train(self, name: str, config: RunConfig, documents: Path, **start: str) -> Path:
        """A run of `vllm-pard train`, which goes on by itself where it was."""
        folder = self.root / name
        run = config.train_config(folder, documents, **start)
        if (folder / RECEIPT).exists() and _asked(folder) == json.loads(json.dumps(asdict(run))):
            self.report(f"{name}: finished before")
            return folder
        self.report(f"{name}: started")
        return train(run, lambda line: self.report(f"{name}: {line}"))


def _asked(folder: Path) -> dict[str, Any]:
    """The whole config of a run, of which a receipt keeps no folders."""
    asked: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))["asked"]
    return {name: value for name, value in asked.items() if name in TrainConfig.__dataclass_fields__}


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / RECEIPT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
