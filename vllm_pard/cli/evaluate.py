"""`vllm-pard evaluate`: how many tokens of a draft are accepted, before a GPU is spent on serving."""

from enum import Enum
from pathlib import Path

import typer

from vllm_pard.catalog import target_folder
from vllm_pard.cli.arguments import TARGET_HELP, Engine, UsageError, check_dtype, json_object, whole_numbers


class Modes(str, Enum):
    """Which inputs a PARD-2 draft reads."""

    auto = "auto"
    dependent = "dependent"
    independent = "independent"
    both = "both"


def evaluate(
    target: str = typer.Argument(help=TARGET_HELP),
    draft: str | None = typer.Argument(None, help="Folder or name of the draft; left out, the catalog picks one."),
    prompts: list[str] = typer.Option(
        ["demo"], help="A task: a set that bench knows, NAME=FILE, or a file of prompts; may be given several times."
    ),
    num_prompts: int | None = typer.Option(None, min=1, help="Of each task, at random; left out, all."),
    k: str | None = typer.Option(None, "--k", help="Draft lengths, such as 1,3,5; left out, what it was trained for."),
    mode: Modes = typer.Option(Modes.auto, help="Of a PARD-2 draft; auto: dependent if the target is its own."),
    engine: Engine = typer.Option(Engine.vllm, help="What decodes: vLLM, or the readable engine on Transformers."),
    engine_args: str | None = typer.Option(None, metavar="JSON", help="More arguments of vLLM's LLM class."),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16."),
    max_tokens: int = typer.Option(256, min=1, help="Longest answer, in tokens."),
    seed: int = typer.Option(0, help="Of the choice of prompts."),
    output: Path | None = typer.Option(None, help="Write the result to this JSON file."),
    plot: Path | None = typer.Option(None, help="Write a picture of acceptance by position to this PNG file."),
    verbose: bool = typer.Option(False, "--verbose", help="Show the engine's log."),
) -> None:
    """Measure the acceptance of a draft by task, position, K and mode, in greedy decoding.

    The engine decodes once, with the longest draft. Its answers are the target's own, so that all other lengths and
    modes are replayed on them.

    Example: vllm-pard evaluate Qwen/Qwen3-8B runs/my-draft --prompts gsm8k --prompts humaneval --k 3,5,8

    Example: vllm-pard evaluate demo --engine reference --num-prompts 8
    """
    from vllm_pard.cli.evaluation.measure import measure
    from vllm_pard.cli.evaluation.question import Question
    from vllm_pard.cli.evaluation.report import show

    check_dtype(dtype)
    for path, suffix in ((output, ".json"), (plot, ".png")):
        if path is not None and path.suffix != suffix:
            raise UsageError(
                f"{'--output' if suffix == '.json' else '--plot'} needs a {suffix} file; got {str(path)!r}"
            )
    question = Question(
        target=target_folder(target),
        draft=draft,
        tasks=tuple(prompts),
        num_prompts=num_prompts,
        lengths=None if k is None else tuple(whole_numbers("--k", k)),
        mode=mode.value,
        reference=engine is Engine.reference,
        options=json_object("--engine-args", engine_args),
        dtype=dtype,
        max_tokens=max_tokens,
        seed=seed,
        verbose=verbose,
    )
    show(measure(question), output, plot)
