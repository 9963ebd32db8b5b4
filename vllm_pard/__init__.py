"""PARD and PARD-2 parallel drafts for vLLM. Importing this package imports nothing else."""

__version__ = "0.1.0"
