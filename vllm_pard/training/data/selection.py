"""What is chosen from documents: a held-out part, and the tokens of a trimmed vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from vllm_pard.draft_vocab_file import most_frequent
from vllm_pard.training.data.config import DataError, Document
from vllm_pard.training.data.documents import columns

__all__ = ["frequent_tokens", "hold_out", "hold_out_of_stream"]


def hold_out(documents: Any, num_documents: int, seed: int) -> tuple[Any, Any]:
    """Split a Dataset into documents to train on and, at random, `num_documents` or a few more to evaluate on.

    Answers to equal prompts stay together, so that no question is in both.

    Raises:
        DataError: nothing would be left to train on, or nothing is to be held out.
    """
    if num_documents < 1:
        raise DataError(f"at least one document must be held out; got {num_documents}")
    prompts, group, sizes = np.unique(documents["prompt"][:], return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(prompts))
    num_groups = int(np.searchsorted(np.cumsum(sizes[order]), num_documents)) + 1
    if num_groups >= len(prompts):
        raise DataError(
            f"holding {num_documents} documents out leaves none to train on: there are {len(documents)}, with "
            f"{len(prompts)} different prompts; hold fewer out, or give an evaluation file"
        )
    is_held_out = np.isin(group, order[:num_groups])
    return documents.select(np.flatnonzero(~is_held_out)), documents.select(np.flatnonzero(is_held_out))


def hold_out_of_stream(stream: Iterable[Document], num_documents: int) -> tuple[StreamWithout, Any]:
    """The same of a stream: its first documents are held out, and later answers to their prompts are passed over.

    Raises:
        DataError: the stream has no more documents than that, or nothing is to be held out.
    """
    import datasets

    if num_documents < 1:
        raise DataError(f"at least one document must be held out; got {num_documents}")
    held_out = list(islice(stream, num_documents))
    rest = StreamWithout(stream, frozenset(document.prompt for document in held_out))
    if next(iter(rest), None) is None:
        raise DataError(
            f"holding {num_documents} documents out of the stream leaves none to train on; hold fewer out, or give "
            "an evaluation file"
        )
    return rest, datasets.Dataset.from_list([document._asdict() for document in held_out])


class StreamWithout:
    """A stream without the documents of some prompts."""

    def __init__(self, stream: Iterable[Document], prompts: frozenset[int]) -> None:
        self._stream, self._prompts = stream, prompts

    def __iter__(self) -> Iterator[Document]:
        return (document for document in self._stream if document.prompt not in self._prompts)


def frequent_tokens(documents: Any, size: int, always: Iterable[int] = ()) -> list[int]:
    """The `size` most frequent trained tokens, `always` among them, in ascending order; fewer if there are fewer.

    `documents` is a Dataset or any iterable of Documents.
    """
    trained = (tokens[is_trained].tolist() for tokens, is_trained, _ in columns(documents))
    return most_frequent(trained, size, always=always)
