"""Hydra launchers that hand all points of a sweep to one place."""
