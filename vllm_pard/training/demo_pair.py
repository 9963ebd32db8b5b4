"""Train the demo pair from nothing: `python -m vllm_pard.training.demo_pair`.

A run can be stopped at any time; the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from vllm_pard.catalog import DEMO_MARKER
from vllm_pard.training import bundle, stages
from vllm_pard.training.models import load_model
from vllm_pard.training.packing import Document
from vllm_pard.training.processor import prepare_processor
from vllm_pard.training.receipt import config_hash
from vllm_pard.training.recipe import DemoPairConfig, smoke_config
from vllm_pard.training.workspace import Stage, Workspace

__all__ = ["main", "make_demo_pair"]


def make_demo_pair(config: DemoPairConfig, workspace: Workspace) -> Path:
    """Run all stages that are not finished.

    Returns:
        The folder with what the package ships.

    Raises:
        OSError: the output folder cannot be written.
    """
    workspace.prepare()
    chain = _Chain(config, workspace)
    target, draft_ar = chain.autoregressive("target"), chain.autoregressive("draft_ar")
    draft_text = chain.parallel("draft_text", draft_ar, chain.documents)
    shipped = workspace.root / "bundle"
    # The catalog knows the demo target by this key, whatever its folder is called.
    bundle.export_model(target.folder, shipped / "target", chain.tokenizer, {DEMO_MARKER: True})
    answers = chain.run(
        "answers",
        lambda stage: stages.answer_questions(
            config.answers, load_model(shipped / "target"), chain.tokenizer, stage.folder, workspace.report
        ),
    )
    draft = chain.parallel("draft", draft_text, lambda: stages.read_answers(answers.folder))
    bundle.export_model(draft_ar.folder, shipped / "draft_ar", chain.tokenizer, {})
    bundle.export_model(draft.folder, shipped / "draft", chain.tokenizer, chain.pard_config())
    chain.run("evaluation", lambda stage: bundle.evaluate_bundle(config.evaluation, shipped, chain.tokenizer))
    bundle.write_receipt([stage.folder for stage in chain.done], shipped)
    return shipped


class _Chain:
    """The stages in order; the key of each covers the configs of all before it."""

    def __init__(self, config: DemoPairConfig, workspace: Workspace) -> None:
        self.config, self.workspace = config, workspace
        self.done: list[Stage] = []
        folder = self.run("text", lambda stage: stages.make_tokenizer(config.text, stage.folder)).folder
        self.tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
        self._documents: list[Document] | None = None

    def run(self, name: str, body: Callable[[Stage], dict[str, Any]]) -> Stage:
        config = getattr(self.config, name)
        key = config_hash(config, *(stage.key for stage in self.done))
        stage = self.workspace.run(name, key, asdict(config), body)
        self.done.append(stage)
        return stage

    def documents(self) -> list[Document]:
        """The corpus, tokenized once for all stages that need it."""
        if self._documents is None:
            self._documents = stages.training_documents(self.config.text, self.tokenizer)
        return self._documents

    def autoregressive(self, name: str) -> Stage:
        return self.run(
            name,
            lambda stage: stages.train_ar(
                getattr(self.config, name),
                self.documents(),
                self.tokenizer,
                stage.folder,
                stage.checkpoint,
                self._reporter(name),
            ),
        )

    def parallel(self, name: str, start: Stage, documents: Callable[[], list[Document]]) -> Stage:
        return self.run(
            name,
            lambda stage: stages.train_cod(
                getattr(self.config, name),
                start.folder,
                documents(),
                self.tokenizer,
                stage.folder,
                stage.checkpoint,
                self._reporter(name),
            ),
        )

    def pard_config(self) -> dict[str, int | str]:
        """The keys by which an engine knows a PARD checkpoint."""
        return {
            "pard_token": self.tokenizer.mask_token_id,
            "spd_type": "pard",
            "num_speculative_tokens_trained": self.config.draft.cod.num_depths,
        }

    def _reporter(self, name: str) -> Callable[[str], None]:
        return lambda line: self.workspace.report(f"{name}: {line}")


def _print_line(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vllm_pard.training.demo_pair", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo_pair"), help="folder of all stages")
    parser.add_argument("--threads", type=int, default=3, help="threads for training")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the chain in a minute")
    parser.add_argument("--install", action="store_true", help="copy the result into vllm_pard/demo")
    options = parser.parse_args(arguments)
    if options.smoke and options.install:
        parser.error("--install needs a trained pair; --smoke trains none: give one of the two")
    logging.disable_progress_bar()
    try:
        prepare_processor(options.threads)
        config = smoke_config() if options.smoke else DemoPairConfig()
        shipped = make_demo_pair(config, Workspace(options.output, _print_line))
        if options.install:
            bundle.install(shipped, Path(__file__).parents[1] / "demo")
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print_line(f"done: {shipped}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
