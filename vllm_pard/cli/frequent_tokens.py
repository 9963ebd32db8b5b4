"""`vllm-pard vocabulary`: the tokens that a trimmed draft may propose, counted in text."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from vllm_pard.catalog import model_folder
from vllm_pard.checkpoint import check_exists, load_tokenizer
from vllm_pard.cli.arguments import TARGET_HELP
from vllm_pard.draft_vocab_file import DraftVocabError, coverage, most_frequent, write_draft_vocab
from vllm_pard.files import check_writable, read_text

# What answers are called in JSON lines; the first is what `vllm-pard generate` writes.
TEXT_FIELDS = ("text", "response", "completion", "answer", "output")


def vocabulary(
    target: str = typer.Argument(help=f"{TARGET_HELP} For its tokenizer."),
    text: list[Path] = typer.Option(help="Text file, or .jsonl with an answer a line; may be given several times."),
    size: int = typer.Option(min=1, help="How many tokens the draft may propose."),
    output: Path = typer.Option(help="Write the token ids to this file, for the option draft_vocab."),
) -> None:
    """Choose the tokens that a draft may propose: the most frequent of texts like those that will be generated.

    A smaller lm_head makes a draft step cheaper and never changes an output; a token that is left out is never drafted.

    Example: vllm-pard vocabulary Qwen/Qwen3-8B --text answers.jsonl --size 32768 --output vocabulary.json
    """
    check_writable(output)
    target = model_folder(target)
    check_exists(target)
    texts = [part for path in text for part in _texts(path)]
    tokenizer = load_tokenizer(target)
    if size > len(tokenizer):
        raise DraftVocabError(f"--size must be at most {len(tokenizer)}, all tokens of {target!r}; got {size}")
    tokenized = [tokenizer(part, add_special_tokens=False, verbose=False).input_ids for part in texts]
    token_ids = most_frequent(tokenized, size, always=tokenizer.all_special_ids)
    write_draft_vocab(output, token_ids)
    if len(token_ids) < size:
        print(
            f"warning: the text has only {len(token_ids)} different tokens, special ones included, and the draft could "
            f"propose no other: --size {size} needs more text, of the kind that will be generated",
            file=sys.stderr,
        )
    print(f"{len(token_ids)} of {len(tokenizer)} tokens, {coverage(tokenized, token_ids):.2%} of the text: {output}")


def _texts(path: Path) -> Iterator[str]:
    content = read_text(path, "text", DraftVocabError)
    if not content.strip():
        raise DraftVocabError(f"the text file {str(path)!r} has no text")
    if path.suffix != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _answer(f"line {number} of {str(path)!r}", line)


def _answer(place: str, line: str) -> str:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise DraftVocabError(f"{place} is not valid JSON: {error.msg} at column {error.colno}") from error
    found = [fields[name] for name in TEXT_FIELDS if name in fields] if isinstance(fields, dict) else []
    if not found or not isinstance(found[0], str):
        raise DraftVocabError(f"{place} needs a text as one of {', '.join(TEXT_FIELDS)}")
    return str(found[0])
