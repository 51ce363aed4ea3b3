"""How the training runs: in one process or in several, and with float32 master weights."""
