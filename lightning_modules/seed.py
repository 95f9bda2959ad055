"""Seeds that follow from the seed of the run."""

import os

import numpy as np


def run_seed() -> int:
    """Seed that ``seed_everything`` has set for this run; 0 where it has set none."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def derived_seed(*parts: int) -> int:
    """Seed of 32 bits that depends on the seed of the run and on ``parts``, such as the epoch and the rank.

    Args:
        parts: Non-negative integers. Equal seeds and equal parts give equal numbers on every machine.
    """
    return int(np.random.SeedSequence((run_seed(), *parts)).generate_state(1)[0])
