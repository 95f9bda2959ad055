"""Seeds that follow from the seed of the run."""

import numpy as np
import pytest

from lightning_modules.seed import derived_seed, run_seed


def test_run_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert run_seed() == 7
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert run_seed() == 0


def test_derived_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run derives the same seed; another epoch, another rank and another run derive other seeds."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    seed = derived_seed(2, 1)
    assert seed == derived_seed(2, 1) == int(np.random.SeedSequence((3, 2, 1)).generate_state(1)[0])
    assert len({seed, derived_seed(1, 2), derived_seed(2, 2), derived_seed(2)}) == 4
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    assert derived_seed(2, 1) != seed
