"""Learning rate schedules: functions from the step to the factor of the peak learning rate."""

import math
from collections.abc import Callable


def warmup_decay(
    total: int,
    warmup: int,
    *,
    lr: float,
    warmup_lr: float = 0.0,
    min_lr: float = 0.0,
    inside: bool = False,
    cooldown: int = 0,
    late: bool = False,
    power: float | None = None,
) -> Callable[[int], float]:
    """Linear warm-up to the peak, then a cosine or a polynomial to ``min_lr`` at the last step.

    Args:
        total: Number of steps (or epochs) of the run.
        warmup: Steps of the warm-up; at most ``total - cooldown - 1`` are used.
        lr: Peak learning rate.
        warmup_lr: Learning rate at step 0 of a warm-up; at most ``lr``.
        min_lr: Learning rate at the end.
        inside: Whether the decay starts at step 0, so that the warm-up hides its first part, as in timm. Otherwise it
            starts at the peak.
        cooldown: Steps at ``min_lr`` after the decay; at most ``total - 1`` are used.
        late: Whether each step has the learning rate of the step before it; the first two are then equal.
        power: Exponent p of the polynomial ``(1 - share of the steps) ** p``; None for a cosine.

    Returns:
        A function from the step to the factor of the peak.
    """
    total -= min(cooldown, total - 1)
    warmup = min(warmup, total - 1)
    start = 0 if inside else warmup

    def factor(step: int) -> float:
        """Factor of the peak at a step."""
        step = max(step - 1, 0) if late else step
        if step < warmup:
            first = min(warmup_lr, lr)
            return (first + (lr - first) * step / warmup) / lr
        done = min((step - start) / max(total - start, 1), 1.0)
        left = (1 + math.cos(math.pi * done)) / 2 if power is None else (1 - done) ** power
        return (min_lr + (lr - min_lr) * left) / lr

    return factor


def warmup_drops(
    warmup: int, drops: list[int], *, lr: float, warmup_lr: float = 0.0, factor: float = 0.1
) -> Callable[[int], float]:
    """Linear warm-up to the peak, then a tenth of the learning rate after each drop, as detectors are trained.

    Args:
        warmup: Steps (or epochs) of the warm-up.
        drops: Steps (or epochs) from which the learning rate is lower.
        lr: Peak learning rate.
        warmup_lr: Learning rate at step 0 of a warm-up; at most ``lr``.
        factor: Factor of the learning rate at each drop.

    Returns:
        A function from the step to the factor of the peak.
    """
    first = min(warmup_lr, lr)

    def factor_at(step: int) -> float:
        """Factor of the peak at a step."""
        rising = (first + (lr - first) * step / warmup) / lr if step < warmup else 1.0
        return rising * factor ** sum(step >= drop for drop in drops)

    return factor_at
