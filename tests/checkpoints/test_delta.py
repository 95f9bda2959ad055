"""Files that are whole or refused, and never half written."""

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints.atomic import write_atomically
from checkpoints.delta import CONFIG, WEIGHTS, check_delta, read_checkpoint, write_adapter
from checkpoints.fingerprint import fingerprint, manifest
from methods import PEFTMethod

CHECKPOINT: dict[str, Any] = {
    "state_dict": {"backbone.head.weight": torch.arange(6.0).view(2, 3), "backbone.scale": torch.tensor(2.0)},
    "peft": {"format": 2, "method": "SSF", "fingerprint": "0", "backbone": "vit", "selection": None},
    "hyper_parameters": {"lr": 0.1, "backbone_args": {"depth": 2}, "_class_path": "x.Y"},
    "identity": {"class_names": ["ä", "b"]},
}
SELECTION = {"blocks.0.weight": torch.tensor([3, 1, 4])}


def equal(a: Any, b: Any) -> bool:
    """Of nested dictionaries with tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) and a.dtype is b.dtype if isinstance(a, Tensor) else bool(a == b)


# writing


def refuse(path: Path) -> None:
    path.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(path: Path) -> None:
    path.write_text("half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("write", [refuse, interrupt])
@pytest.mark.parametrize("before", ["old", None])
def test_a_failing_writer_leaves_what_was_there(
    write: Callable[[Path], None], before: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    if before is not None:
        path.write_text(before)
    with pytest.raises((OSError, KeyboardInterrupt)):
        write_atomically(path, write)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == ([("file.json", "old")] if before else [])


def test_a_full_disk_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("old")

    def replace(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", lambda path: path.write_text("new"))
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("ne")
        seen.append(path.exists())
        temporary.write_text("new")

    write_atomically(path, write)
    assert seen == [False]
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_permissions_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", lambda path: path.write_text("x"))
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


# adapter folders


@pytest.mark.parametrize("selection", [None, SELECTION])
def test_adapter_round_trip(selection: dict[str, Tensor] | None, tmp_path: Path) -> None:
    checkpoint = CHECKPOINT | {"peft": CHECKPOINT["peft"] | {"selection": selection}, "optimizer_states": ["left out"]}
    checkpoint["state_dict"] = checkpoint["state_dict"] | {"strided": torch.arange(6).view(2, 3).T}
    write_adapter(tmp_path / "adapter", checkpoint)
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {WEIGHTS, CONFIG}
    del checkpoint["optimizer_states"]
    assert equal(read_checkpoint(tmp_path / "adapter"), checkpoint)
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["peft_type"] == "GRAFT_SSF"


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_missing_file_of_an_adapter(name: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, CHECKPOINT)
    (tmp_path / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"{name}: no such file; an adapter folder holds {WEIGHTS} and {CONFIG}"
    ):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_truncated_weights(size: int, tmp_path: Path) -> None:
    write_adapter(tmp_path, CHECKPOINT)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:size])
    with pytest.raises(ValueError, match=rf"{WEIGHTS} \({len(whole[:size])} bytes\) is empty or incomplete"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"peft": {', b"\xff\xfe\x00"])
def test_damaged_json(content: bytes, tmp_path: Path) -> None:
    write_adapter(tmp_path, CHECKPOINT)
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(ValueError, match=f"{CONFIG} is not valid JSON"):
        read_checkpoint(tmp_path)


def test_adapter_of_another_library(tmp_path: Path) -> None:
    write_adapter(tmp_path, CHECKPOINT)
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    with pytest.raises(
        ValueError, match="is no adapter of this project: it lacks hyper_parameters, identity, peft, selected"
    ):
        read_checkpoint(tmp_path)


def test_adapter_that_names_a_foreign_class(tmp_path: Path) -> None:
    """Its JSON must not be able to call what it likes."""
    options = {"args": ["touch", str(tmp_path / "was run")], "_class_path": "subprocess.Popen"}
    write_adapter(tmp_path, CHECKPOINT | {"hyper_parameters": options})
    with pytest.raises(Exception, match=r"subprocess\.Popen"):
        PEFTMethod.from_delta(tmp_path)
    assert not (tmp_path / "was run").exists()


# checkpoint files


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    torch.save(CHECKPOINT, tmp_path / "model.ckpt")
    assert equal(read_checkpoint(str(tmp_path / "model.ckpt")), CHECKPOINT)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_truncated_checkpoint(share: float, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(CHECKPOINT, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    size = int(share * len(whole))
    with pytest.raises(ValueError, match=rf"model\.ckpt' \({size} bytes\) is empty, incomplete or unsafe: \S"):
        read_checkpoint(path)


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save(CHECKPOINT | {"callbacks": Code(tmp_path / "was run")}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"unsafe: UnpicklingError .* GLOBAL posix\.mkdir"):
        read_checkpoint(tmp_path / "model.ckpt")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(2)])
def test_other_torch_files(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is no checkpoint of this project: it has no 'peft' entry"):
        read_checkpoint(tmp_path / "other.pth")


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"ckpt_path='{tmp_path}/nothing.ckpt': no such file")):
        read_checkpoint(tmp_path / "nothing.ckpt")


# what identifies tensors


def test_fingerprint_sees_every_change() -> None:
    base = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bfloat16), "c": torch.tensor(1)}
    same = {"c": torch.tensor(1), "b": torch.ones(2, 4, dtype=torch.bfloat16)[:, ::2], "a": torch.arange(4.0)}
    assert fingerprint(same) == fingerprint(base)
    others = [
        base | {"a": torch.tensor([0.0, 1.0, 2.0, 3.0000002])},
        base | {"a": torch.arange(4.0).view(2, 2)},
        base | {"a": torch.arange(4.0).view(torch.int32)},
        base | {"d": torch.zeros(0)},
        {"A" if name == "a" else name: tensor for name, tensor in base.items()},
        base | {"a": torch.tensor([-0.0, 1.0, 2.0, 3.0])},
    ]
    assert len({fingerprint(tensors) for tensors in [base, *others]}) == 7


def test_manifest() -> None:
    expected = {"a": {"dtype": "bfloat16", "shape": [2, 3]}, "b": {"dtype": "int64", "shape": []}}
    assert manifest({"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.tensor(1)}) == expected


def test_long_lists_of_problems_are_cut() -> None:
    expected = {f"layer{i:02}": torch.zeros(1) for i in range(20)}
    with pytest.raises(ValueError, match=r"missing layer00; .*missing layer07; and 12 more"):
        check_delta(expected, {})
