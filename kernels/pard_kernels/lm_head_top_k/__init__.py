"""The best tokens of each hidden state, without the logits in memory."""
