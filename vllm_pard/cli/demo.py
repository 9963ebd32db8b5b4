"""`vllm-pard demo`: the bundled pair in the real vLLM, plain and then with PARD."""

from collections.abc import Iterator
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vllm_pard.bench.prompt_sets import demo_prompts
from vllm_pard.config import check_num_speculative_tokens
from vllm_pard.errors import PardError
from vllm_pard.process import PARD_LOG_LINE

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_pard.cli.demo_report import Measurement

PLAIN = "plain"
MAX_MODEL_LEN = 512
TOY = "A toy of a few million parameters, trained on templates: its wrong answers are its own, with and without PARD."
# The pair is small: a gigabyte holds every K/V block, one process an engine saves seconds of start-up, and two threads
# are enough. With threads for all cores, 3 to 7 tokens/s were seen instead of 100 while another program ran beside it:
# OpenMP waits for the slowest thread.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "2",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


class DemoError(PardError):
    """The demo can't run in this installation."""


class Dtype(str, Enum):
    """fp32 makes both outputs equal token for token; in bf16 near-ties may fall either way."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Draft(str, Enum):
    """The demo pair's drafts, by their training; PARD-2's also reads the target's hidden states."""

    pard = "pard"
    pard2 = "pard2"

    @property
    def label(self) -> str:
        return "PARD" if self is Draft.pard else "PARD-2"

    @property
    def model(self) -> str:
        """Among the demo's models."""
        return "draft" if self is Draft.pard else "draft_pard2"


def demo(
    draft: Draft = typer.Option(Draft.pard, help="Which draft; PARD-2's also reads the target's hidden states."),
    dtype: Dtype = typer.Option(Dtype.float32, help="Weights and arithmetic."),
    num_prompts: int = typer.Option(8, "--prompts", min=1, help="How many held-out prompts to answer."),
    batch_size: int = typer.Option(1, min=1, help="Requests at a time."),
    max_tokens: int = typer.Option(128, min=1, max=MAX_MODEL_LEN // 2, help="Longest answer, in tokens."),
    num_speculative_tokens: int = typer.Option(8, min=1, help="K, draft tokens per step; at most 127."),
    runs: int = typer.Option(1, min=1, help="Measure plain and PARD in turns this often; quotes medians."),
    json_file: Path | None = typer.Option(None, "--json", help="Write results and conditions to this file."),
    verbose: bool = typer.Option(False, "--verbose", help="Show vLLM's log."),
) -> None:
    """Watch PARD decode: the bundled demo pair in vLLM, without and with PARD, and what the difference is.

    Both engines answer the same prompts greedily, never at the same time. Works on a laptop CPU.

    Example: vllm-pard demo

    Example: vllm-pard demo --runs 5 --json result.json
    """
    from rich.console import Console

    from vllm_pard.cli.demo_report import print_report, write_report
    from vllm_pard.files import check_writable

    check_num_speculative_tokens(num_speculative_tokens)
    if json_file:
        check_writable(json_file)
    console = Console(highlight=False)
    pard = draft.label
    engine_options = {
        PLAIN: demo_engine(dtype, batch_size),
        pard: demo_engine(dtype, batch_size, draft, num_speculative_tokens),
    }
    prompts = demo_prompts(num_prompts)
    sampling = {"temperature": 0.0, "max_tokens": max_tokens}
    conditions, measurements = run_in_turns(console, engine_options, prompts, sampling, batch_size, runs, verbose)
    console.print()
    options = {"dtype": dtype.value, "draft": draft.value, "num_prompts": len(prompts), "batch_size": batch_size}
    options |= {"max_tokens": max_tokens, "num_speculative_tokens": num_speculative_tokens, "runs": runs}
    print_report(console, options, measurements[PLAIN], measurements[pard], title=pard)
    if json_file:
        write_report(json_file, options, conditions, measurements[PLAIN], measurements[pard])
        console.print(f"\nwritten to {json_file}", markup=False)


def run_in_turns(
    console: "Console",
    engine_options: dict[str, dict[str, Any]],
    prompts: list[dict[str, Any]],
    sampling: dict[str, Any],
    batch_size: int,
    runs: int,
    verbose: bool,
) -> "tuple[dict[str, Any], dict[str, list[Measurement]]]":
    """Start all engines, let each answer once to be seen, then measure them in turns.

    What is seen is not measured: it pays for the engine's set-up and for the terminal.

    Returns:
        The conditions of the last engine, and the measurements of each.
    """
    from vllm_pard.cli.demo_report import measure
    from vllm_pard.cli.engine.client import EngineProcess

    measurements: dict[str, list[Measurement]] = {name: [] for name in engine_options}
    with ExitStack() as stack:
        with console.status("Starting two vLLM engines (half a minute on a laptop) ..."):
            engines = {
                name: stack.enter_context(EngineProcess(options, environment=ENVIRONMENT, verbose=verbose))
                for name, options in engine_options.items()
            }
            conditions = {name: engine.wait_until_ready() for name, engine in engines.items()}
        for engine in engines.values():
            for line in engine.log_lines(PARD_LOG_LINE):
                console.print(f"vLLM: {line}", style="dim", markup=False)
        console.print(TOY, style="dim", markup=False)
        for name, engine in engines.items():
            console.print(f"\n[bold]{name}[/bold]")
            show_answers(console, prompts, engine.generate(prompts, sampling, stream=batch_size == 1))
        for run in range(runs):
            for name, engine in engines.items():
                with console.status(f"Measuring {name}, run {run + 1} of {runs} ..."):
                    measurements[name].append(measure(engine.generate(prompts, sampling)))
    return list(conditions.values())[-1], measurements


def demo_engine(
    dtype: Dtype, batch_size: int, draft: Draft | None = None, num_speculative_tokens: int = 0
) -> dict[str, Any]:
    """Arguments of vLLM's LLM class; without a draft, those of plain decoding."""
    from vllm_pard.demo import demo_path

    try:
        target, model = str(demo_path("target")), draft and str(demo_path(draft.model))
    except FileNotFoundError as error:
        raise DemoError(str(error)) from error
    options: dict[str, Any] = {
        "model": target,
        "dtype": dtype.value,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": batch_size,
        "gpu_memory_utilization": 0.3,
        "enable_prefix_caching": False,  # or every run but the first would skip the prompts
    }
    if draft is not None:
        options["speculative_config"] = {"method": "pard", "num_speculative_tokens": num_speculative_tokens}
        if draft is not Draft.pard:  # which is the one that is found without being named
            options["speculative_config"]["model"] = model
    return options


def show_answers(console: "Console", prompts: list[dict[str, Any]], events: Iterator[dict[str, Any]]) -> None:
    """Print answers while they grow, or, with several at a time, as they finish."""
    questions = {prompt["id"]: prompt["question"] for prompt in prompts}
    streams = False
    for event in events:
        if event["event"] not in ("text", "finished"):
            continue
        if question := questions.pop(event["id"], None):
            console.print(f"\n{question}", style="cyan", markup=False)
            streams = event["event"] == "text"
        if event["event"] == "text":
            console.print(event["text"], end="", markup=False)
        else:
            console.print("" if streams else event["text"], markup=False)
