"""Sweep transforms of prompt embeddings through vLLM."""
