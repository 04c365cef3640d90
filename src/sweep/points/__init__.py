"""Points: resolved configurations, their controls and their fingerprints."""
