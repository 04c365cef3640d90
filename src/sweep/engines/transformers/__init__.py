"""Transformers engine: a decoding loop over a model's forward pass."""
