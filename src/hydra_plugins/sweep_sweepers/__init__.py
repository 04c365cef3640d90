"""Hydra sweepers that choose the next points by the results of earlier ones."""
