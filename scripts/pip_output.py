"""pip's output, in the few lines that somebody who waits wants to see."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

LARGE_MEGABYTES = 20.0


def say(line: str) -> None:
    print(f"setup: {line}", file=sys.stderr, flush=True)


def report_progress(lines: Sequence[str]) -> None:
    """Show what takes long, and why nothing comes."""
    line = lines[-1]
    size = re.search(r"^Downloading .*\(([\d.]+) ([MG])B\)", line)
    if size and float(size.group(1)) * (1000 if size.group(2) == "G" else 1) >= LARGE_MEGABYTES:
        say(f"  {line}")
    elif line.startswith("Installing collected packages"):
        say(f"  installing {line.count(',') + 1} packages")
    elif line.startswith("WARNING: Retrying (Retry(total=4"):  # the first of five
        say(f"  {line[:200]}")


def explain(lines: Sequence[str]) -> str:
    """Show pip's last meaningful lines, and return what they mean in a sentence."""
    errors = [line for line in lines if re.match(r"ERROR|error:", line)] or [line for line in lines if line]
    for line in errors[-4:]:
        say(f"  {line[:240]}")
    text = "\n".join(lines)
    if "No space left on device" in text:
        advice = "the disk is full: make room"
    elif re.search(r"Retrying|ConnectionError|Temporary failure|timed out", text):
        advice = "pip can't reach a package index: check the network, and the index that `pip config list` shows"
    elif re.search(r"No matching distribution found for torch==\S+\+cpu", text):
        advice = (
            "none of pip's indexes has this CPU build of PyTorch for this Python: "
            "name PyTorch's own CPU index (see PyTorch's installation page) in PIP_EXTRA_INDEX_URL"
        )
    elif "No matching distribution" in text:
        advice = "none of pip's indexes has this package for this Python and machine"
    else:
        advice = "pip failed for the reason above"
    return advice
