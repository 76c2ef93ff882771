"""Local training as stacked functions: one `Work` interface, several adapters behind it."""
