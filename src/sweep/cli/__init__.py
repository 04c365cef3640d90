"""Command line: arguments, error messages and exit codes."""
