"""Train PARD drafts: COD rows, losses, data, the run, and the recipe of the demo pair."""
