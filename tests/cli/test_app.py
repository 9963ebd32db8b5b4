import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from vllm_pard import __version__
from vllm_pard.cli import doctor, patches
from vllm_pard.errors import PardError

Run = Callable[..., Any]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, typer.testing, vllm_pard.cli.app as cli\n"
        "for command in ([], ['demo'], ['generate'], ['serve'], ['vocabulary'], ['doctor'], ['patches']):\n"
        "    assert typer.testing.CliRunner().invoke(cli.app, [*command, '--help']).exit_code == 0, command\n"
        "print([name for name in ('torch', 'vllm', 'transformers', 'triton') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_version(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, __version__)


def test_without_arguments_shows_help(run: Run) -> None:
    result = run()
    assert "demo" in result.output
    assert "generate" in result.output


@pytest.mark.parametrize("arguments", [["nothing"], ["demo", "--runs", "0"], ["generate"], ["demo", "--dtype", "int8"]])
def test_wrong_usage(arguments: list[str], run: Run) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "check_versions", fail)


def test_our_errors_are_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, PardError("this is wrong; do that"))
    result = run("doctor")
    assert result.exit_code == 2
    assert result.stderr == "vllm-pard: this is wrong; do that\n"
    assert result.stdout == ""


def test_interrupt_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    result = run("doctor")
    assert result.exit_code == 130
    assert result.stderr == "vllm-pard: interrupted\n"


def test_other_errors_keep_their_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ValueError("a bug of ours")
    failing(monkeypatch, error)
    assert run("doctor").exception is error


def test_patches_are_the_ledger(run: Run) -> None:
    from vllm_pard.serving.patches import PATCHES

    text = run("patches").stdout
    rows = json.loads(run("patches", "--json").stdout)
    assert [row["target"] for row in rows] == [patch.target for patch in PATCHES]
    for patch in PATCHES:
        for words in (patch.target, patch.why, patch.upstream, patch.remove_when):
            assert words in text
    assert patches.patches.__doc__
