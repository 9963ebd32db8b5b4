"""`vllm-pard bench`: ways of decoding compared, on the same prompts and the same machine."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vllm_pard.catalog import DEMO
from vllm_pard.cli.arguments import MODE_HELP, TARGET_HELP, Engine, Mode, check_dtype, json_object, whole_numbers

if TYPE_CHECKING:
    from vllm_pard.bench.comparison import Comparison

SOME_FAILED = 1
FILE_WIDTH = 140  # where there is no terminal to fit in


class Placement(str, Enum):
    """How the engines share the machine."""

    auto = "auto"
    together = "together"
    in_turn = "in-turn"


def bench(
    target: str = typer.Argument(DEMO, help=TARGET_HELP),
    methods: str | None = typer.Option(None, help="METHOD[=MODEL][:K],... ; the first is the baseline. See --list."),
    prompts: str = typer.Option(DEMO, help="A prompt set (see --list), NAME=FILE for a local copy of one, or a file."),
    category: str | None = typer.Option(None, help="Only prompts of this category, where a set has any."),
    num_prompts: int | None = typer.Option(None, min=1, help="How many of them, chosen by --seed; left out, all."),
    concurrency: str = typer.Option("1", help="Requests at a time, a list: 1,4,16."),
    runs: int = typer.Option(5, min=1, help="Measure each method this often; quotes medians."),
    warmup: int = typer.Option(8, min=1, help="Unmeasured requests before each method's first run."),
    requests_per_user: int | None = typer.Option(None, min=1, help="At concurrency c, use only the first c times N."),
    max_tokens: int = typer.Option(128, min=1, help="Longest answer, in tokens."),
    temperature: float = typer.Option(0.0, min=0.0, help="0 is greedy."),
    ignore_eos: bool = typer.Option(False, "--ignore-eos", help="Always --max-tokens tokens; for step costs."),
    seed: int = typer.Option(0, help="Of the choice of prompts, and of sampling."),
    draft: str | None = typer.Option(None, help="The PARD draft; left out, the catalog picks one."),
    mode: Mode = typer.Option(Mode.auto, help=MODE_HELP),
    ar_draft: str | None = typer.Option(None, help="The autoregressive draft of draft_model (vsd)."),
    eagle3_head: str | None = typer.Option(None, help="The head of eagle3."),
    num_speculative_tokens: int | None = typer.Option(None, min=1, help="K; left out, what the draft was trained for."),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16."),
    engine: Engine = typer.Option(Engine.vllm, help="vLLM servers, or the readable engine on Transformers."),
    engine_args: str | None = typer.Option(None, metavar="JSON", help="More of vLLM's engine arguments."),
    placement: Placement = typer.Option(
        Placement.auto, help="All engines at once, in alternating order (auto: on CPUs), or one after the other."
    ),
    port: int | None = typer.Option(None, min=1, max=65535, help="First port of the servers; left out, free ones."),
    verify: bool = typer.Option(
        False, "--verify", help="Compare all outputs with plain decoding's; exit 1 if rounding does not explain it."
    ),
    json_file: Path | None = typer.Option(None, "--json", help="Write results and conditions, after each run."),
    plots: Path | None = typer.Option(None, help="Write PNG plots into this folder."),
    show_list: bool = typer.Option(False, "--list", help="Show known methods and prompt sets, and exit."),
    verbose: bool = typer.Option(False, "--verbose", help="Show the servers' logs."),
) -> None:
    """Compare ways of decoding: speed, latency, acceptance, share of the memory roof, and whether outputs are equal.

    Every method runs the same prompts in the real vLLM, each in a server of its own, measured by vLLM's own
    benchmark client. Ctrl-C keeps what was measured.

    Example: vllm-pard bench

    Example: vllm-pard bench Qwen/Qwen3-8B --methods none,draft_model+parallel_drafting,pard --prompts gsm8k
    --num-prompts 80 --concurrency 1,4,16,64 --json result.json --plots .
    """
    if show_list:
        print_list()
        raise typer.Exit
    check_dtype(dtype)
    from vllm_pard.bench.load import Sampling
    from vllm_pard.bench.options import Options
    from vllm_pard.bench.prepare import prepare

    options = Options(
        target=target,
        methods=methods,
        prompts=prompts,
        category=category,
        num_prompts=num_prompts,
        concurrencies=whole_numbers("--concurrency", concurrency),
        runs=runs,
        warmup=warmup,
        requests_per_user=requests_per_user,
        sampling=Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed, ignore_eos=ignore_eos),
        draft=draft,
        mode=mode.value,
        ar_draft=ar_draft,
        eagle3_head=eagle3_head,
        num_speculative_tokens=num_speculative_tokens,
        dtype=dtype,
        reference=engine is Engine.reference,
        engine_args=json_object("--engine-args", engine_args),
        together=None if placement is Placement.auto else placement is Placement.together,
        port=port,
        verify=verify,
        json_file=json_file,
        plots=plots,
        verbose=verbose,
    )
    if run(prepare(options)):
        raise typer.Exit(SOME_FAILED)


def run(comparison: "Comparison") -> bool:
    """Measure, telling how far it is, then print and draw; whether any method failed or gave wrong outputs."""
    from rich.console import Console

    from vllm_pard.bench.plan import Step
    from vllm_pard.bench.report import print_report
    from vllm_pard.bench.timetable import Timetable
    from vllm_pard.cli.progress import Progress

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=FILE_WIDTH)
    timetable = Timetable(comparison.plan.all_steps)
    try:
        with Progress(timetable.num_steps, lambda: timetable.in_words) as progress:

            def on_step(step: Step) -> None:
                timetable.begin(step)
                progress.show(timetable.num_begun)

            comparison.run(on_step)
    finally:
        print_report(console, comparison.report)
        for path in comparison.save():
            console.print(f"written to {path}", markup=False)
    return comparison.has_failures


def print_list() -> None:
    from vllm_pard.bench.methods import METHODS, REFERENCE_METHODS
    from vllm_pard.bench.prompt_sets import set_names

    print("methods:")
    for name, method in METHODS.items():
        print(f"  {name:30} {method.about}")
    print("METHOD=MODEL gives that one a draft (or head) of its own, so that several are compared in one run")
    print(f"methods of --engine reference: {', '.join(REFERENCE_METHODS)}")
    print(f"prompt sets: {', '.join(set_names())}")
