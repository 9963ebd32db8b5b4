"""Transformers' Trainer, and what a run tells and watches while it goes."""
