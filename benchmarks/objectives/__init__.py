"""Objectives that were tried and are not part of apdm, one in each file; `benchmarks.protection` compares them.

apdm harden --objective benchmarks/objectives/displaced.py:Displaced ...
"""
