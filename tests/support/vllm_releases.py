"""vLLM releases that are supported and not installed: their sources, and engines that run them.

Sources come out of a release's wheel once and stay in a cache as a zip file of .py files only.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("VLLM_PARD_WHEEL_CACHE") or ROOT / ".cache" / "wheels")
NEWEST = "0.33.0"  # what GPUs get; there is no newer CPU wheel than the installed one
WHEEL_GIGABYTES = 1.5  # the download, pip's temporary copy of it and the zip file
DOWNLOAD_SECONDS = 300


class Unavailable(Exception):
    """A release's sources can't be had here; the message says why."""


def cached_sources(release: str) -> Path:
    """The zip file of a release's .py files; made from a wheel in the cache, or else from a downloaded one."""
    sources = CACHE / f"vllm-{release}-sources.zip"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{sources}.lock"):  # of several processes that test, one downloads
        if not sources.exists():
            _make_sources(release, sources)
    return sources


def _make_sources(release: str, sources: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="download-") as folder:
        wheel = next(CACHE.glob(f"vllm-{release}-*.whl"), None) or download_wheel(release, Path(folder))
        partial = Path(folder) / sources.name
        with zipfile.ZipFile(wheel) as packed, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as unpacked:
            for name in packed.namelist():
                if name.endswith(".py"):
                    unpacked.writestr(name, packed.read(name))
        partial.replace(sources)


def download_wheel(release: str, folder: Path) -> Path:
    free = shutil.disk_usage(folder).free / 1e9
    if free < WHEEL_GIGABYTES:
        raise Unavailable(f"its wheel needs {WHEEL_GIGABYTES} GB in {CACHE}, and {free:.1f} GB are free")
    pip = [sys.executable, "-m", "pip", "download", f"vllm=={release}", "--dest", str(folder)]
    pip += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=1", "--progress-bar=off"]
    try:
        done = subprocess.run(pip, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"its wheel did not come within {DOWNLOAD_SECONDS} s") from None
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        last_line = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise Unavailable(f"its wheel can't be downloaded ({last_line})")
    return wheel


def engine_environment(release: str, folder: Path) -> dict[str, str]:
    """Environment variables under which `import vllm` is the release, on the installed CPU wheel's C++ kernels."""
    with zipfile.ZipFile(cached_sources(release)) as packed:
        packed.extractall(folder)
    installed = importlib.util.find_spec("vllm")
    assert installed is not None
    assert installed.origin is not None
    for library in Path(installed.origin).parent.glob("*.so"):
        (folder / "vllm" / library.name).symlink_to(library)
    metadata = folder / f"vllm-{release}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}+cpu\n")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "VLLM_TARGET_DEVICE": "cpu"}
