"""Train PARD drafts: COD rows, text generators, a small trainer and the recipe of the demo pair."""
