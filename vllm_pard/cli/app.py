"""The commands, and the one place where errors become sentences."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from vllm_pard.cli.bench import bench
from vllm_pard.cli.demo import demo
from vllm_pard.cli.doctor import doctor
from vllm_pard.cli.evaluate import evaluate
from vllm_pard.cli.frequent_tokens import vocabulary
from vllm_pard.cli.generate import generate
from vllm_pard.cli.patches import patches
from vllm_pard.cli.serve import CONTEXT as SERVE_CONTEXT
from vllm_pard.cli.serve import serve
from vllm_pard.cli.train import CONTEXT as TRAIN_CONTEXT
from vllm_pard.cli.train import train
from vllm_pard.errors import PardError

USER_ERROR, INTERRUPTED = 2, 130


class Commands(TyperGroup):
    """Runs a command; a user's error ends in one sentence, anything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PardError as error:
            print(f"vllm-pard: {error}", file=sys.stderr)
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt as error:
            print(": ".join(("vllm-pard: interrupted", *map(str, error.args))), file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=Commands,
    help="PARD parallel drafts for vLLM: the same tokens in fewer steps.\n\n"
    'To serve: vllm-pard serve TARGET --speculative-config \'{"method": "pard"}\'',
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command(context_settings=SERVE_CONTEXT)(serve)
app.command()(generate)
app.command()(bench)
app.command(context_settings=TRAIN_CONTEXT)(train)
app.command()(evaluate)
app.command()(vocabulary)
app.command()(doctor)
app.command()(patches)


@app.callback(invoke_without_command=True)
def version(show: bool = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True)) -> None:
    if show:
        from vllm_pard import __version__

        print(__version__)
        raise typer.Exit
