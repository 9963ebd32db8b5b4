"""`vllm-pard generate`: answer many prompts with any target, offline."""

from pathlib import Path
from typing import Any

import typer

from vllm_pard.catalog import model_folder
from vllm_pard.cli.arguments import MODE_HELP, TARGET_HELP, Engine, Mode, UsageError, check_dtype, json_object

SOME_REFUSED = 1


def generate(
    target: str = typer.Argument(help=TARGET_HELP),
    prompt: list[str] = typer.Option([], help="A prompt; may be given several times."),
    prompts: Path | None = typer.Option(None, help="Text file, a prompt a line; or .jsonl: prompt or messages a line."),
    chat: bool = typer.Option(False, "--chat", help="Put plain prompts through the chat template."),
    output: Path | None = typer.Option(None, help="Write JSON lines to this file, each as soon as it is finished."),
    resume: bool = typer.Option(
        False, "--resume", help="Go on with an output file of the same settings: skip what is finished in it."
    ),
    draft: str | None = typer.Option(None, help="Folder or name of the draft; left out, the catalog picks one."),
    num_speculative_tokens: int | None = typer.Option(None, min=1, help="K; left out, what the draft was trained for."),
    mode: Mode = typer.Option(Mode.auto, help=MODE_HELP),
    no_pard: bool = typer.Option(False, "--no-pard", help="Plain decoding, to compare."),
    speculative_config: str | None = typer.Option(None, metavar="JSON", help="More keys of the speculative config."),
    engine_args: str | None = typer.Option(None, metavar="JSON", help="More arguments of vLLM's LLM class."),
    engine: Engine = typer.Option(Engine.vllm, help="vLLM, or the readable engine on Transformers (slow)."),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16."),
    max_tokens: int = typer.Option(256, min=1, help="Longest answer, in tokens."),
    temperature: float = typer.Option(0.0, min=0.0, help="0 is greedy."),
    n: int = typer.Option(1, "--n", min=1, help="Answers to each prompt; more than one needs a temperature."),
    top_p: float = typer.Option(1.0, min=0.0, max=1.0, help="Nucleus sampling; 1 is off."),
    seed: int | None = typer.Option(None, help="Makes sampling repeatable."),
    verbose: bool = typer.Option(False, "--verbose", help="Show the engine's log."),
) -> None:
    """Answer prompts with PARD, offline and in one batch, to the terminal or as JSON lines to a file.

    Nothing finished is lost when a run is stopped; --resume goes on.

    Example: vllm-pard generate meta-llama/Llama-3.1-8B-Instruct --chat --prompt "Why is the sky blue?"

    Example: vllm-pard generate Qwen/Qwen3-8B --prompts questions.jsonl --output answers.jsonl

    To train a draft on: vllm-pard generate TARGET --prompts questions.jsonl --output data.jsonl --n 4 --temperature 0.7
    """
    from vllm_pard.cli.batch.batch import Batch
    from vllm_pard.cli.batch.checks import check_batch
    from vllm_pard.cli.batch.run import run_batch
    from vllm_pard.prompts import collect_prompts, with_samples

    if top_p == 0:
        raise UsageError("--top-p must be above 0: with 0 no token is left; --temperature 0 is greedy")
    if n > 1 and temperature == 0:
        raise UsageError(f"--n {n} needs a --temperature above 0: greedy answers to one prompt are all the same")
    check_dtype(dtype)
    batch = Batch(
        options={"model": model_folder(target), "dtype": dtype} | engine_options(engine_args),
        speculative=speculative_options(no_pard, draft, num_speculative_tokens, mode, speculative_config),
        prompts=with_samples(collect_prompts(prompt, prompts, chat=chat), n),
        sampling={"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed},
        reference=engine is Engine.reference,
        verbose=verbose,
    )
    check_batch(batch)
    if run_batch(batch, output, resume=resume) > 0:
        raise typer.Exit(SOME_REFUSED)


def engine_options(text: str | None) -> dict[str, Any]:
    """More of vLLM's arguments, none of which has a place of its own on our command line."""
    given = json_object("--engine-args", text)
    for key, place in (("model", "TARGET"), ("speculative_config", "--speculative-config")):
        if key in given:
            raise UsageError(f"{key!r} does not go into --engine-args; give it as {place}")
    return given


def speculative_options(
    no_pard: bool, draft: str | None, num_speculative_tokens: int | None, mode: Mode, extra: str | None
) -> dict[str, Any] | None:
    """What vLLM gets as its speculative config."""
    given: dict[str, Any] = {"model": draft, "num_speculative_tokens": num_speculative_tokens}
    given["mode"] = None if mode is Mode.auto else mode.value
    given = {key: value for key, value in given.items() if value is not None}
    more = json_object("--speculative-config", extra)
    if no_pard:
        if given or more:
            raise UsageError("--no-pard drafts nothing; leave it out, or the options of the draft")
        return None
    if twice := sorted(given.keys() & more.keys()):
        raise UsageError(f"{twice[0]!r} is given twice, by its option and in --speculative-config; give it once")
    return {"method": "pard"} | given | more
