"""What a run leaves: its folder, the draft, its card and receipt, and the upload."""
