"""`vllm-pard evaluate`: how many tokens of a draft are accepted, before a GPU is spent on serving."""

from enum import Enum
from pathlib import Path

import typer

from vllm_pard.catalog import model_folder
from vllm_pard.cli.arguments import MODE_HELP, TARGET_HELP, Engine, UsageError, check_dtype, json_object, whole_numbers
from vllm_pard.files import check_writable

SOME_REFUSED = 1


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
        ["demo"],
        help="A task: a prompt set (vllm-pard bench --list), NAME=FILE, or a file; may be given several times.",
    ),
    num_prompts: int | None = typer.Option(None, min=1, help="Of each task, chosen by --seed; left out, all."),
    k: str | None = typer.Option(None, "--k", help="Draft lengths, a list: 1,3,5; left out, what it was trained for."),
    mode: Modes = typer.Option(Modes.auto, help=f"{MODE_HELP} both: one after the other."),
    engine: Engine = typer.Option(Engine.vllm, help="What decodes: vLLM, or the readable engine on Transformers."),
    engine_args: str | None = typer.Option(None, metavar="JSON", help="More arguments of vLLM's LLM class."),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16."),
    max_tokens: int = typer.Option(256, min=1, help="Longest answer, in tokens."),
    seed: int = typer.Option(0, help="Of the choice of prompts."),
    output: Path | None = typer.Option(None, help="Write counts and conditions to this JSON file."),
    plot: Path | None = typer.Option(None, help="Write a picture of acceptance by position to this PNG file."),
    verbose: bool = typer.Option(False, "--verbose", help="Show the engine's log."),
) -> None:
    """Measure the acceptance of a draft by task, position, K and mode, at temperature 0.

    The engine decodes each task once, with the longest draft. Greedy answers are the target's own whatever the draft
    is, so all other lengths and modes are replayed on them. Ends with exit code 1 if prompts were refused.

    Example: vllm-pard evaluate Qwen/Qwen3-8B runs/my-draft --prompts gsm8k --prompts humaneval --k 3,5,8

    Example: vllm-pard evaluate demo --engine reference --num-prompts 8
    """
    from vllm_pard.cli.evaluation.question import Question, find_models, find_tasks

    check_dtype(dtype)
    _check_files(output, plot)
    question = Question(
        target=model_folder(target),
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
    tasks, models = find_tasks(question), find_models(question)

    from vllm_pard.cli.evaluation.measure import measure
    from vllm_pard.cli.evaluation.report import show

    evaluation = measure(models, tasks)
    show(evaluation, output, plot)
    if evaluation.refused:
        raise typer.Exit(SOME_REFUSED)


def _check_files(output: Path | None, plot: Path | None) -> None:
    """Before the work, not after it."""
    for option, path, suffix in (("--output", output, ".json"), ("--plot", plot, ".png")):
        if path is not None:
            if path.suffix != suffix:
                raise UsageError(f"{option} needs a {suffix} file; got {str(path)!r}")
            check_writable(path)
    if plot is not None:
        from vllm_pard.bench.plots import check_matplotlib

        check_matplotlib()
