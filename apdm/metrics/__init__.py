"""Pure statistics over numbers that an extractor gave: identity, fidelity, intervals and cost, the
verdict."""
