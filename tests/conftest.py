"""Shared by all tests: interpreter mode before anything imports Triton, seeds, tiny checkpoints."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from notices import Notices

torch.set_num_threads(1)  # tiny models: more threads only wait for each other
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Print what tests have to say beside their results."""
    config.pluginmanager.register(Notices())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    """vLLM writes into the environment when it checks a config; engines of later tests would inherit it."""
    before = dict(os.environ)
    yield
    current_test = "PYTEST_CURRENT_TEST"  # pytest's own, changed meanwhile
    for name in (os.environ.keys() | before.keys()) - {current_test}:
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny fp32 target and a PARD draft that agrees with it often, not always."""
    from tiny_models import save_pair

    return save_pair(tmp_path_factory.mktemp("tiny_pair"))
