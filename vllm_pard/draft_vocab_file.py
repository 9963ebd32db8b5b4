"""The file that names the tokens which a trimmed draft may propose: a JSON list of token ids.

Most text is written with few of a model's tokens, and an lm_head costs a draft as much as several layers. Fewer tokens
make a draft step cheaper; a token that is left out is never drafted, so acceptance falls a little, and outputs stay.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from vllm_pard.errors import PardError
from vllm_pard.files import write_whole


class DraftVocabError(PardError):
    """A draft vocabulary can't be read, or does not fit its models."""


def write_draft_vocab(path: Path, token_ids: list[int]) -> None:
    """Write the ids to the file, in place of what it held."""
    write_whole(path, json.dumps(token_ids) + "\n")


def read_draft_vocab(path: str, vocab_size: int | None = None) -> list[int]:
    """Read and check the ids, in ascending order.

    Raises DraftVocabError on a file that is not a JSON list of ids, each at most once and below `vocab_size` if given.
    """
    try:
        token_ids = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DraftVocabError(f"can't read the draft vocabulary {path!r}: {reason}") from error
    except json.JSONDecodeError as error:
        raise DraftVocabError(f"the draft vocabulary {path!r} is not valid JSON: {error.msg}") from error
    wanted = f'"draft_vocab" must name a file with a JSON list of token ids, each once; {path!r} '
    if not isinstance(token_ids, list) or not token_ids:
        raise DraftVocabError(wanted + ("is an empty list" if token_ids == [] else f"holds {type(token_ids).__name__}"))
    for token_id in token_ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise DraftVocabError(wanted + f"has {token_id!r} in it")
    if len(set(token_ids)) < len(token_ids):
        repeated, _ = Counter(token_ids).most_common(1)[0]
        raise DraftVocabError(wanted + f"has {repeated} more than once")
    if vocab_size is not None and max(token_ids) >= vocab_size:
        raise DraftVocabError(
            f"the draft vocabulary {path!r} has the token {max(token_ids)}, but draft and target share {vocab_size} "
            "tokens only: make it with this draft's tokenizer (vllm-pard vocabulary)"
        )
    return sorted(token_ids)


def most_frequent(texts: Iterable[list[int]], size: int, *, always: Iterable[int] = ()) -> list[int]:
    """The `size` most frequent ids of tokenized texts, `always` among them, in ascending order.

    Of equally frequent ids the smallest stay. There are fewer than `size` if the texts have fewer.
    """
    counts = Counter(token_id for text in texts for token_id in text)
    kept = set(always)
    for token_id, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(kept) >= size:
            break
        kept.add(token_id)
    return sorted(kept)


def coverage(texts: Iterable[list[int]], token_ids: Iterable[int]) -> float:
    """The share of the texts' tokens that are in the vocabulary, from 0 to 1."""
    kept, known = set(token_ids), [token_id for text in texts for token_id in text]
    return sum(token_id in kept for token_id in known) / max(len(known), 1)
