"""Keep what is no news to users off their terminal."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Of Transformers, which draws one for each model that it reads or writes; a command has one of its own."""
    from transformers.utils import logging as theirs

    with _without(theirs.is_progress_bar_enabled(), theirs.disable_progress_bar, theirs.enable_progress_bar):
        yield


@contextmanager
def without_dataset_bars() -> Iterator[None]:
    """Of Datasets, which draws one for each dataset that it makes; a command has one of its own."""
    import datasets

    with _without(
        not datasets.are_progress_bars_disabled(), datasets.disable_progress_bars, datasets.enable_progress_bars
    ):
        yield


@contextmanager
def _without(is_there: bool, disable: Callable[[], None], enable: Callable[[], None]) -> Iterator[None]:
    disable()
    try:
        yield
    finally:
        if is_there:
            enable()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Logged or warned: vLLM's import tells of every part that this machine lacks, and a failure is ours to tell."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
