from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pard2_draft(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny draft, as one that reads features of the tiny target."""
    from pard2_draft import save_pard2_draft

    return save_pard2_draft(tmp_path_factory.mktemp("pard2") / "draft", tiny_pair[1])


@pytest.fixture
def target_named(tiny_pair: tuple[Path, Path], tmp_path: Path) -> Callable[[str], Path]:
    """The tiny target in a folder of another name, by which the fake engine behaves."""

    def link(name: str) -> Path:
        (tmp_path / name).symlink_to(tiny_pair[0])
        return tmp_path / name

    return link


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.txt"
    path.write_text("one\ntwo\nthree\n")
    return path
