"""Many prompts answered offline: what `vllm-pard generate` runs."""
