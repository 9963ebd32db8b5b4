"""Acceptance on held-out answers: teacher-forced, and by true decoding."""
