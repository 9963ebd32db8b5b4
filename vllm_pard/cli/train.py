"""`vllm-pard train`: make a PARD or PARD-2 draft of any target."""

import typer

# Whatever follows the config is an option of the config.
CONTEXT = {"allow_interspersed_args": False, "ignore_unknown_options": True}


def train(
    config: str = typer.Argument(help="YAML file, or the name of one in vllm_pard/training/options/configs."),
    options: list[str] = typer.Argument(None, metavar="[--any.field VALUE]...", help="In place of the file's."),
) -> None:
    """Train a draft; the same command goes on with a run that was interrupted.

    In several processes: torchrun --nproc-per-node 8 -m vllm_pard.cli train CONFIG.yaml

    Example: vllm-pard train draft.yaml --target Qwen/Qwen3-8B --draft Qwen/Qwen3-0.6B --output runs/qwen3

    Example: vllm-pard train laptop --data.sources "[{path: answers.jsonl}]"

    Example: vllm-pard train draft.yaml --prune-layers 4 --trainer.learning_rate 1e-4
    """
    from vllm_pard.training.options.shipped_configs import find_config
    from vllm_pard.training.options.train_config import load_config

    parsed = load_config(find_config(config), options or [])

    from accelerate import PartialState

    from vllm_pard.silence import without_progress_bars
    from vllm_pard.training.run import train as run

    try:
        with without_progress_bars():
            run(parsed, lambda line: print(line, flush=True))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("the same command goes on from the last checkpoint") from error
    # Else its threads may outlive the interpreter, and a finished run ends with SIGABRT (pytorch/pytorch#179291). After
    # an error the other processes may still wait in it.
    PartialState().destroy_process_group()
