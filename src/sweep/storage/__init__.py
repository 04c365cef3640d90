"""Storage: journal of generations, archive of scored points, publish log and sweep lock on disk."""
