"""Learning rate schedules: functions from the step to the factor of the peak learning rate."""

import math
from collections.abc import Callable


def warmup_cosine(
    total: int, warmup: int, *, lr: float, warmup_lr: float = 0.0, min_lr: float = 0.0
) -> Callable[[int], float]:
    """Linear warm-up to the peak, then a cosine to ``min_lr`` at the last step.

    Args:
        total: Number of steps (or epochs) of the run.
        warmup: Steps of the warm-up; at most ``total - 1`` are used.
        lr: Peak learning rate.
        warmup_lr: Learning rate at step 0 of a warm-up; at most ``lr``.
        min_lr: Learning rate at the end.

    Returns:
        A function from the step to the factor of the peak.
    """
    warmup = min(warmup, total - 1)

    def factor(step: int) -> float:
        """Factor of the peak at a step."""
        if step < warmup:
            start = min(warmup_lr, lr)
            return (start + (lr - start) * step / warmup) / lr
        done = min((step - warmup) / max(total - warmup, 1), 1.0)
        return (min_lr + (lr - min_lr) * (1 + math.cos(math.pi * done)) / 2) / lr

    return factor
