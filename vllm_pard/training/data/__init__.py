"""Training data: records of many formats, tokenized, held out and packed."""
