"""The leaderboard: what each way of hardening costs an attacker, in one format. README.md explains it."""
