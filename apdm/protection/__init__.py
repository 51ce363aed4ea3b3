"""Hardening a model (APDM, arXiv 2511.01307), without files and devices.

learning_to_protect  Algorithm 1: the attacker's steps, the protective gradients at its weights, and the step of theta
losses               the paper's losses as pure functions of squared errors
objectives           what the defender lowers at the attacker's weights, one file for each; `dpo` is the paper's
attackers            the simulated attackers: on whom each trains, and with which settings
attacker_pool        attackers that live on over outer steps; not in the paper
batches              the samples that attacker and defender compute their losses on
subject_data         the encoded photos and prompts of a person, from which batches are drawn
"""
