"""Models of Transformers as the engine wants them."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM


def load_model(model: str, dtype: str, device: str) -> Any:
    """Folder or Hugging Face name; dtype as Transformers spells it, "auto" for the checkpoint's own."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device).eval()


def eos_token_ids(target: Any) -> tuple[int, ...]:
    """From the generation config, where a model may name several."""
    eos = target.generation_config.eos_token_id
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
