"""COnditional Drop-token: the rows of a batch, who attends to whom, and the collator that lays them out."""
