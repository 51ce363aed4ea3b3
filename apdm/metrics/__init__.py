"""Statistics over what networks read from pictures: identity, distances between sets of pictures, intervals, cost.

Each statistic is a pure function of numbers. `judges` and `extractors` run the networks that give those numbers.
"""
