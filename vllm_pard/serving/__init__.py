"""PARD inside vLLM. Everything that imports vLLM is here; importing this package imports nothing."""
