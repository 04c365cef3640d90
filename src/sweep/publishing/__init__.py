"""Publishing: scores, archives, publishes and reports finished points in the background while the engine runs."""
