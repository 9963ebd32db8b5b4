"""Where gigabytes of weights may go."""

import shutil
import subprocess
from pathlib import Path

from shapes import EnlargeError


def check_output(output: Path, num_bytes: int) -> None:
    """Refuse a folder that would mix with other files, get into git, or fill the disk."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise EnlargeError(f"--output must be a new or an empty folder; {str(output)!r} is not: remove it first")
    parents = output.resolve().parents
    work_tree = next((parent for parent in parents if (parent / ".git").exists()), None)
    if work_tree is not None and not is_ignored(work_tree, output.resolve() / "target" / "model.safetensors"):
        raise EnlargeError(
            f"--output must be outside git or ignored by it; {str(output)!r} is in a git work tree "
            "that would take up its files: give another folder"
        )
    num_free = shutil.disk_usage(next(parent for parent in parents if parent.exists())).free
    if num_free < num_bytes:
        raise EnlargeError(
            f"--output needs {num_bytes / 1e9:.1f} GB of disk; {str(output)!r} has {num_free / 1e9:.1f} GB free"
        )


def is_ignored(work_tree: Path, path: Path) -> bool:
    """Whether git ignores the path; without a git to ask, no."""
    git = shutil.which("git")
    if git is None:
        return False
    command = [git, "-C", str(work_tree), "check-ignore", "--quiet", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
