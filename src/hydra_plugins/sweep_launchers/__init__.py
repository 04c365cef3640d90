"""Hydra launchers that run all points of a sweep together instead of one by one."""
