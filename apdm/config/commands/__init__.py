"""The options of each command, one file for each: a tree of dataclasses, put together from `apdm.config.groups`."""
