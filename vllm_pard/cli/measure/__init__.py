"""Whether a draft pays on this machine: what `vllm-pard doctor --measure` runs."""
