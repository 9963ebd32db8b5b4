"""Train the demo pair from nothing: `python -m vllm_pard.training.demo_pair`.

A run can be stopped at any time; the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vllm_pard.errors import PardError
from vllm_pard.silence import without_dataset_bars, without_progress_bars
from vllm_pard.training.demo_pair.bundle import install
from vllm_pard.training.demo_pair.processor import prepare_processor
from vllm_pard.training.demo_pair.recipe import DemoPairConfig, smoke_config
from vllm_pard.training.demo_pair.stages import COMMAND, make_demo_pair

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo_pair"), help="folder of all stages")
    parser.add_argument("--threads", type=int, default=min(3, os.cpu_count() or 1), help="threads for training")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the chain in a minute")
    parser.add_argument("--install", action="store_true", help="copy the result into vllm_pard/demo")
    options = parser.parse_args(arguments)
    if options.smoke and options.install:
        parser.error("--install needs a trained pair; --smoke trains none: give one of the two")
    if options.threads < 1:
        parser.error(f"--threads must be 1 or more; got {options.threads}")
    try:
        prepare_processor(options.threads)
        config = smoke_config() if options.smoke else DemoPairConfig()
        with without_progress_bars(), without_dataset_bars():
            shipped = make_demo_pair(config, options.output, _print_line)
        if options.install:
            install(shipped, Path(__file__).parents[2] / "demo")
    except (PardError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print_line(f"the pair is in {shipped}")
    return 0


def _print_line(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
