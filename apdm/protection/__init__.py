"""Losses, Learning to Protect, simulated attackers and the attacker pool."""
