"""Seed of the run, and seeds that are derived from it."""

import os
import random

import numpy as np
import torch


def run_seed() -> int:
    """Seed of this run, as set by ``seed_everything``; 0 without a seed."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def derived_seed(*parts: int) -> int:
    """Seed of 32 bits, derived from the seed of the run and from ``parts``, such as the epoch and the rank.

    Args:
        parts: Integers of at least 0. Equal seeds and equal parts give equal results on every machine.
    """
    return int(np.random.SeedSequence((run_seed(), *parts)).generate_state(1)[0])


def seed_epoch(epoch: int, rank: int) -> None:
    """Seed all random numbers by the epoch and the rank only, so that a resumed run draws the same numbers."""
    seed = derived_seed(epoch, rank)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
