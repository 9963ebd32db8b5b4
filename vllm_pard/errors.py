"""The one base of every error that a user can cause: shown as one sentence, without a traceback of ours."""

import re

# After a full stop, or where a line that says something by itself ends: others are wrapped in mid-sentence.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|(?<![:,;])[ \t]*\n\s*(?=[A-Z])")


class PardError(ValueError):
    """Wrong input; the message says what was wanted, what came and what to do."""


def first_sentence(error: BaseException) -> str:
    """What another library's error says first, in one line; later sentences advise on its own options."""
    sentence = SENTENCE_END.split(str(error).strip(), maxsplit=1)[0]
    return " ".join(sentence.split()).rstrip(".: ") or type(error).__name__
