"""What to draft, host side: no vLLM in here."""
