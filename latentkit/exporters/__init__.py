"""Core's own exporters, one format per file."""
