"""Every command in the documents runs as it stands there, or is read by its own program's parser."""

import re
from pathlib import Path

import doc_parse
import pytest
from doc_blocks import DOCUMENTS, FENCE, KINDS, ROOT, Block, all_blocks, blocks, blocks_of, run_block

COMMANDS = {"fast", "slow", "server", "client", "parse"}


@pytest.mark.parametrize("block", all_blocks(), ids=str)
def test_every_block_says_how_it_is_tested(block: Block) -> None:
    assert block.kind in KINDS, f"{block}: write <!-- test: KIND --> above it, KIND one of {', '.join(KINDS)}"
    assert (block.kind in COMMANDS) == (block.language in ("bash", "python", "yaml")), f"{block} is {block.language!r}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_code_escapes(name: str) -> None:
    """Markdown has other kinds of code blocks, in which a command would go untested."""
    outside = FENCE.sub("", (ROOT / name).read_text())
    assert not re.findall(r"^(?: {4}|\t|~~~|\s*```).*", outside, re.MULTILINE)


def test_clients_have_a_server() -> None:
    """One server, in the README, which tests/serving/test_server.py starts for all of its clients."""
    asked = blocks("server", "client")
    assert [block.kind for block in asked] == ["server"] + ["client"] * (len(asked) - 1)
    assert len(asked) >= 3


@pytest.mark.parametrize("block", blocks("fast"), ids=str)
def test_runs(block: Block, tmp_path: Path) -> None:
    run_block(block, tmp_path)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("block", blocks("slow"), ids=str)
def test_runs_with_engines(block: Block, tmp_path: Path) -> None:
    run_block(block, tmp_path, timeout=850)


@pytest.mark.parametrize("block", blocks("parse"), ids=str)
def test_is_read_by_its_parser(block: Block) -> None:
    doc_parse.check(block)


def test_commands_in_sentences_exist() -> None:
    from typer.main import get_command

    from vllm_pard.cli.app import app

    text = "".join((ROOT / name).read_text() for name in DOCUMENTS)
    named = set(re.findall(r"`vllm-pard (\w+)", text))
    assert named >= {"demo", "doctor", "bench", "patches"}
    assert named <= set(get_command(app).commands)
    others = re.findall(r"`((?:make|pip) [^`]+)`", text)
    assert len(others) >= 3
    doc_parse.check(Block("sentences", 0, "bash", "\n".join(others)))


def test_blocks_are_found_with_their_markers() -> None:
    text = 'one\n\n<!-- test: fast, shows "a b" -->\n```bash\necho a b\n```\n\n```python\nx = 1\n```\n'
    marked, unmarked = blocks_of("X", text)
    assert marked == Block("X", 4, "bash", "echo a b\n", "fast", "a b")
    assert (unmarked.line, unmarked.kind) == (8, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vllm-pard generat demo", "no command 'generat'"),
        ("vllm-pard bench --method none", "No such option: --method"),
        ("""vllm-pard serve demo --speculative-config '{"method":"pard","k":8}'""", 'unknown key "k"'),
        ("pip install 'vllm-pard[gpu]'", "the extras are"),
        ("make everything", "No rule to make target"),
        ("frobnicate", "no parser for 'frobnicate'"),
    ],
)
def test_a_wrong_command_is_found(text: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        doc_parse.check(Block("X", 1, "bash", text))


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="X:1 ended with 1"):
        run_block(Block("X", 1, "bash", "false\ntrue\n"), tmp_path)
    with pytest.raises(AssertionError, match="X:1 does not show '42'"):
        run_block(Block("X", 1, "python", "print(41)\n", shows="42"), tmp_path)
