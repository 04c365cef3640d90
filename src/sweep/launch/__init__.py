"""Launch: sweeps split into shards, for several processes on one or many machines.

A *plan* is a folder: `manifest.json` with what all shards share, and a file for each *shard*, which one process runs
with one engine. The plan contains composed configurations, so later edits of configuration files do not affect it.
Shards write to the journal and the sweep's archive, as a sweep in one process does. A plan can therefore be deleted at
any time: the same command makes a new one of the remaining points.

The launchers, which call it, are in `hydra_plugins.sweep_launchers`.
"""
