"""Uploads a finished draft: what engines read, its README and its receipt, and nothing else of the run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi

from vllm_pard.errors import PardError, first_sentence

__all__ = ["HubError", "asking_the_hub", "upload_draft"]

# By name: a folder may also hold checkpoints, run.json with this machine's paths, TensorBoard's files and users' logs.
UPLOADED = (
    "README.md",
    "receipt.json",
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "pard_warp_model/model.safetensors",
    "warp_model.bin",
    "draft_vocab.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
)


class HubError(PardError):
    """The hub says no, or can't be reached."""


@contextmanager
def asking_the_hub(what: str) -> Iterator[None]:
    """`what` failed, if the hub raises an error of whichever kind."""
    try:
        yield
    except Exception as error:  # of the HTTP library, the hub's, the file system's: they share no base
        raise HubError(
            f"{what} ({first_sentence(error)}): log in with `hf auth login`, check trainer.hub_model_id, or set "
            "trainer.push_to_hub to false; the same command tries again"
        ) from error


def upload_draft(folder: Path, repository: str, message: str, revision: str | None) -> str:
    """Upload the finished draft in `folder`; the address of the commit.

    Raises:
        HubError: the hub says no; the draft stays in the folder.
    """
    names = {path.name for pattern in UPLOADED for path in folder.glob(pattern) if path.is_file()}
    with asking_the_hub(f"the draft is in {str(folder)!r} and can't be uploaded to {repository!r}"):
        commit = HfApi(library_name="vllm-pard").upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=sorted(names),
            commit_message=message,
            revision=revision,
        )
    return str(commit)
