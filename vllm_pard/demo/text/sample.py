"""The unit every generator returns, and the way it is written down for a model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BEGIN", "END", "MASK", "PAD", "SPECIAL_TOKENS", "Sample", "format_prompt"]

BEGIN = "<|begin|>"
END = "<|end|>"
PAD = "<|pad|>"
MASK = "<|mask|>"
# The order fixes the token ids 0..3. MASK is in no document, so the target never produces it.
SPECIAL_TOKENS = (BEGIN, END, PAD, MASK)


@dataclass(frozen=True)
class Sample:
    """One question with its computed answer.

    `family` names the template: splits and reports go by it.
    """

    question: str
    answer: str
    family: str

    @property
    def prompt(self) -> str:
        """Text before the answer, without BEGIN: the tokenizer adds that."""
        return format_prompt(self.question)

    @property
    def completion(self) -> str:
        """Text the model is to produce after `prompt`, without END."""
        return f" {self.answer}"


def format_prompt(question: str) -> str:
    """The document format of the demo pair, up to where the answer starts."""
    return f"Question: {question}\nAnswer:"
