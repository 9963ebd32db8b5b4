"""Train PARD drafts: COD rows, a small trainer and the recipe of the demo pair."""
