"""Names of the attacks of `scoring.recovery`; apart, so that reading a configuration does not load NumPy."""

ATTACKS = ("nearest", "rotation", "linear")
