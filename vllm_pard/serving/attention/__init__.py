"""Attention backend `CUSTOM`: our kernel for few rows a request, the platform's for the rest."""
