"""The encoder-decoder network, v1.0 and v1.1/FLAN, as Flax linen modules."""
