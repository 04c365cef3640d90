"""Hydra sweepers that choose the next points by what has come of those before."""
