"""Attention of a few new rows per request over a paged prefix."""
