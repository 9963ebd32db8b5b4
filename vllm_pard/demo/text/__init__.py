"""What the demo pair was trained on and is asked: seeded word problems and small Python functions, with answers."""
