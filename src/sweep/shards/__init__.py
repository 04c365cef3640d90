"""A sweep in pieces, for several processes on one machine or on many.

A *plan* is a folder: `manifest.json`, which says what all pieces share, and a file for each *shard*, a piece that one
process works off with one engine.  Configurations are in it as they were composed, so what is changed afterwards does
not reach them.  Shards keep what they generate in the journal and the sweep's archive, like a sweep in one piece does:
a plan may be forgotten at any time, and the same command makes one of what is left.
"""
