"""What the benchmarks measure where nothing else is asked for."""

SIZES = ((640, 480), (1600, 1200))
"""Width and height of the images in pixels."""

SCENARIOS = ((64, 2), (64, 4), (64, 16), (1024, 2), (1024, 4), (1024, 16))
"""Ranks, and samples of a step for each. 64 with 2 is the paper's batch of 128 on eight nodes of eight; 16 is what each
of the paper's eight GPUs had."""
