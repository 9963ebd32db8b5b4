"""Lines under pytest's results, so that what did not run as it should is seen without `-rs`.

A plugin of tests/conftest.py. Tests may run in several processes; one of them prints the results.
"""

from typing import Any

import pytest

NOTICES = pytest.StashKey[list[str]]()
NAME = "notices"  # under which a worker of pytest-xdist hands them on


def notice(config: pytest.Config, line: str) -> None:
    """Have a line printed."""
    handed_on = getattr(config, "workeroutput", None)
    lines: list[str] = config.stash.setdefault(NOTICES, []) if handed_on is None else handed_on.setdefault(NAME, [])
    lines.append(line)


class Notices:
    """Hooks of the process that prints the results."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for line in getattr(node, "workeroutput", {}).get(NAME, ()):
            notice(node.config, line)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        for line in config.stash.get(NOTICES, []):
            terminalreporter.write_line(f"NOTICE: {line}", yellow=True)
