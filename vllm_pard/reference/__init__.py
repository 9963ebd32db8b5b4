"""The readable engine on Transformers. Start with engine.py."""
