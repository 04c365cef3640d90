"""Configuration: schema, loader, and changes to Hydra."""
