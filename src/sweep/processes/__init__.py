"""Child processes, threads, and ways to end with the parent."""
