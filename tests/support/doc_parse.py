"""Blocks that can't run here, read by the parsers of the programs that they are for."""

import shlex
import subprocess
from collections.abc import Callable, Iterator

from doc_blocks import ROOT, Block

Words = list[str]


def check(block: Block) -> None:
    """Raise what the program's own parser raises, or AssertionError where there is none."""
    if block.language == "python":
        compile(block.text, str(block), "exec")
        return
    if block.language == "yaml":
        check_train_options(block.text)
        return
    assert block.language == "bash", f"{block}: no parser for {block.language!r}"
    for program, *words in commands(block.text):
        assert program in PARSERS, f"{block}: no parser for {program!r}"
        PARSERS[program](words)


def commands(text: str) -> Iterator[Words]:
    """The words of each command of a shell block, as a shell splits them, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def check_vllm_pard(words: Words) -> None:
    from typer.main import get_command

    from vllm_pard.cli.app import app

    name, *rest = words
    known = get_command(app).commands
    assert name in known, f"vllm-pard has no command {name!r}"
    given = known[name].make_context(name, rest).params
    if name == "serve":
        check_server(given["target"], given["arguments"] or [])
    if name == "train":
        check_train(given["config"], given["options"] or [])


def check_train(config: str, options: Words) -> None:
    from vllm_pard.training.options.shipped_configs import find_config
    from vllm_pard.training.options.train_config import load_config

    load_config(find_config(config), options)


def check_train_options(text: str) -> None:
    """Some options of a training config, beside what every config has."""
    import yaml

    from vllm_pard.training.options.train_config import from_mapping

    whole = {"target": "T", "draft": "D", "output": "O", "data": {"sources": [{"path": "P"}], "max_length": 512}}
    from_mapping(whole | yaml.safe_load(text))


def check_torchrun(words: Words) -> None:
    """Its own parser, and ours for what it starts."""
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(words)
    assert given.module
    assert given.training_script == "vllm_pard.cli"
    check_vllm_pard(given.training_script_args)


def check_server(target: str, arguments: Words) -> None:
    """vLLM's own parser for its server, and ours for the speculative config."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from vllm_pard.config import PardConfig
    from vllm_pard.serving.plugin import register

    register()  # --spec-method pard
    given = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", target, *arguments])
    config = given.speculative_config
    if config is not None:
        assert config["method"] == "pard"
        PardConfig.from_mapping(config)


def check_make(words: Words) -> None:
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_pip(words: Words) -> None:
    """Ours are the extras that there are; other packages need only have names."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    command, *packages = words
    assert command in ("install", "uninstall"), command
    for package in map(Requirement, packages):
        if canonicalize_name(package.name) == "vllm-pard":
            assert package.extras <= extras(), f"{package}: the extras are {extras()}"


def extras() -> set[str]:
    from importlib.metadata import metadata

    return set(metadata("vllm-pard").get_all("Provides-Extra") or ())


PARSERS: dict[str, Callable[[Words], None]] = {
    "vllm-pard": check_vllm_pard,
    "torchrun": check_torchrun,
    "make": check_make,
    "pip": check_pip,
}
