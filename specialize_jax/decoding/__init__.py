"""From encoded inputs to token sequences."""
