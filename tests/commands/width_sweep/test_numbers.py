"""Lists in options."""

import re
from pathlib import Path

import pytest

from tests.support.sweeps import SWEEP
from train import main


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--parameterizations", "mub"], "unknown parameterization 'mub'; nearest: mup"),
        (["--optimizer", "muon"], "unknown optimizer 'muon'"),
        (["--alignments", "half"], "unknown alignment 'half'"),
        (["--widths", "16"], "widths='16': expected at least two"),
        (["--widths", "16,24"], "width 24: expected multiples of the heads' size, --head_dim 16"),
        (["--widths", "16,wide"], "widths='16,wide': .* expected numbers separated by commas"),
        (["--lrs", "0"], "lrs='0': expected positive numbers"),
        (["--lrs", ","], "lrs is empty"),
        (["--fit_config", "nowhere.yaml"], r"fit_config='nowhere\.yaml': no such file"),
    ],
)
def test_refused(
    options: list[str], match: str, fit_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    command = ["width_sweep", *SWEEP, "--fit_config", str(fit_config), "--output", str(tmp_path / "sweep")]
    with pytest.raises(SystemExit):
        main([*command, *options])
    assert re.search(match, capsys.readouterr().err)
    assert not (tmp_path / "sweep").exists()
