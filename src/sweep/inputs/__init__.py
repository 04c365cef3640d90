"""Inputs of a sweep: prompts, model files, tokens and embedding rows."""
