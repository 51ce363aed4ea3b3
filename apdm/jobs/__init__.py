"""One module per command: what it does from start to end."""
