"""Keep what is no news to users off their terminal."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Of Transformers, which draws one for each model that it reads or writes; a command has one of its own."""
    from transformers.utils import logging as theirs

    was_enabled = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            theirs.enable_progress_bar()


@contextmanager
def without_dataset_bars() -> Iterator[None]:
    """Of Datasets, where `report` says how far it is."""
    import datasets

    were_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()


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
