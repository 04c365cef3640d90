"""Utilities without knowledge of sweeps: files, digests, text and validation."""
