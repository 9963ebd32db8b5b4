"""A vLLM engine in a process of its own, and what it tells while it answers."""
