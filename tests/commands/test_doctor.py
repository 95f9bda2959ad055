"""What `train.py doctor` finds."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from commands import doctor
from train import main


def test_versions_and_devices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights/efficientnet_lite0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    main(["doctor"])
    out = capsys.readouterr().out
    assert f"torch                    {version('torch')}\n" in out
    assert f"{torch.get_num_threads()} threads" in out
    assert "local-dir:weights/efficientnet_lite0" in out
    assert out.endswith("nothing that stops a run\n")


@pytest.mark.parametrize(
    ("needed", "extra", "fault", "note"),
    [
        ("torch>=1", "", "", ""),
        ("torch>=99", "", "needs torch>=99: pip install -e .", ""),
        ("no-such-package>=1", "", "needs no-such-package>=1: pip install -e .", ""),
        ("no-such-package>=1", "grid", "", "needs no-such-package>=1: pip install -e '.[grid]'"),
    ],
)
def test_packages(needed: str, extra: str, fault: str, note: str) -> None:
    finding = doctor.package(Requirement(needed), extra)
    assert (finding.fault, finding.note) == (fault, note)


def test_a_fault_ends_with_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def without_timm(name: str) -> str:
        if name == "timm":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without_timm)
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "FAULT: needs timm>=" in out
    assert out.endswith("1 fault\n")


def test_torch_and_torchvision_of_different_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)  # type: ignore[attr-defined]
    faults = [finding.fault for finding in doctor.versions() if finding.fault]
    assert faults == ["operator torchvision::nms does not exist: install builds of one release"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)  # type: ignore[attr-defined]
    assert "cannot be written" in doctor.folders()[0].fault
