"""The code blocks of README.md, GUIDE.md and TRAINING.md, and how a test runs each.

A block is fenced and names its language; the line above it says what a test does with it, and what that must show:

<!-- test: slow, shows "42" -->
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "GUIDE.md", "TRAINING.md")
KINDS = {
    "fast": "runs as it stands, in seconds",
    "slow": "runs as it stands, and starts engines",
    "server": "starts a server, for the client blocks below it: tests/serving/test_server.py",
    "client": "is asked of the server above",
    "parse": "can't run here (hub, GPU, package index, hours): its own program's parser reads it",
    "metrics": "names metrics, all of which vLLM must export: tests/serving/test_metric_names.py",
    "text": "is no command",
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r'<!-- test: (\w+)(?:, shows "(.+)")? -->\n\Z')
README_PORT = "8000"


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    document: str
    line: int
    language: str
    text: str
    kind: str | None = None  # None: nobody says
    shows: str = ""  # what its output must hold

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def all_blocks() -> list[Block]:
    """Of all documents, in the reader's order."""
    return [block for name in DOCUMENTS for block in blocks_of(name, (ROOT / name).read_text())]


def blocks_of(document: str, text: str) -> list[Block]:
    found = []
    for fence in FENCE.finditer(text):
        marker = MARKER.search(text[: fence.start()])
        kind, shows = (marker[1], marker[2] or "") if marker else (None, "")
        found.append(Block(document, text.count("\n", 0, fence.start()) + 1, fence[1], fence[2], kind, shows))
    return found


def blocks(*kinds: str) -> list[Block]:
    return [block for block in all_blocks() if block.kind in kinds]


def command_of(block: Block, folder: Path, port: int | None = None) -> list[str]:
    """What runs it as it stands; a port makes place for a server that has another one than the documents'."""
    text = block.text if port is None else block.text.replace(README_PORT, str(port))
    if block.language == "bash":
        return ["bash", "-euo", "pipefail", "-c", text]
    script = folder / "example.py"
    script.write_text(text)
    return [sys.executable, str(script)]


def environment(**more: str) -> dict[str, str]:
    """As after `pip install` of this working tree, without a network."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    source = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    ours = {"PATH": path, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    # Our own tests run Triton's interpreter; an engine for users does not.
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | ours | more


def run_block(block: Block, folder: Path, port: int | None = None, timeout: float = 120) -> str:
    """Its output; a block that fails, or does not show what it should, is an AssertionError."""
    done = subprocess.run(
        command_of(block, folder, port),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{block} ended with {done.returncode}\n{done.stdout[-6000:]}"
    assert block.shows in done.stdout, f"{block} does not show {block.shows!r}\n{done.stdout[-6000:]}"
    return done.stdout
