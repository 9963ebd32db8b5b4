"""What tests have to say beside their results is printed, whichever process they ran in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
from notices import Notices

def pytest_configure(config):
    config.pluginmanager.register(Notices())
"""
TEST = """
import pytest
from notices import notice

@pytest.mark.parametrize("number", range(3))
def test_it(request, number):
    notice(request.config, f"the {number}. was skipped")
"""


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two"])
def test_notices_are_printed(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TEST)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent / "support")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("NOTICE"))
    assert lines == [f"NOTICE: the {number}. was skipped" for number in range(3)], done.stdout
    assert "3 passed" in done.stdout.splitlines()[-1]
