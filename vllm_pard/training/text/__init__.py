"""Seeded text generators: word problems and small Python functions, with computed answers."""
