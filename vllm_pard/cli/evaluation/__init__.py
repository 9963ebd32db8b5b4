"""A draft on tasks: what `vllm-pard evaluate` measures."""
