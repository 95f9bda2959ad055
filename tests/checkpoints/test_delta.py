"""Files that are whole or refused, and never half written."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints.delta import CONFIG, WEIGHTS, check_delta, read_checkpoint, write_adapter
from checkpoints.fingerprint import manifest
from checkpoints.structure import with_prefix
from methods import PEFTMethod
from tests.support.adapters import change_config

STATE = {"backbone.head.weight": torch.arange(6.0).view(2, 3), "backbone.scale": torch.tensor(2.0)}
PEFT = {"format": 2, "method": "SSF", "fingerprint": "0", "backbone": "vit", "selection": None}
CHECKPOINT: dict[str, Any] = {
    "state_dict": STATE,
    "peft": PEFT | {"manifest": manifest(STATE)},
    "hyper_parameters": {"lr": 0.1, "backbone_args": {"depth": 2}, "_class_path": "x.Y"},
    "identity": {"class_names": ["ä", "b"]},
}
SELECTION = {"blocks.0.weight": torch.tensor([3, 1, 4])}


def equal(a: Any, b: Any) -> bool:
    """Of nested dictionaries with tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) and a.dtype is b.dtype if isinstance(a, Tensor) else bool(a == b)


# adapter folders


@pytest.mark.parametrize("selection", [None, SELECTION])
def test_adapter_round_trip(selection: dict[str, Tensor] | None, tmp_path: Path) -> None:
    state = STATE | {"strided": torch.arange(6).view(2, 3).T}
    peft = PEFT | {"selection": selection, "manifest": manifest(state | with_prefix(selection))}
    checkpoint = CHECKPOINT | {"state_dict": state, "peft": peft, "optimizer_states": ["left out"]}
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
    with pytest.raises(ValueError, match=r"its class 'subprocess\.Popen' is unknown; expected methods\.NAME"):
        PEFTMethod.from_delta(tmp_path)
    assert not (tmp_path / "was run").exists()


def flipped(whole: bytes, place: int) -> bytes:
    """Content with one flipped bit."""
    return whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]


@pytest.mark.parametrize("selection", [None, SELECTION])
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_no_flipped_bit_of_an_adapter_changes_a_value(
    name: str, selection: dict[str, Tensor] | None, tmp_path: Path
) -> None:
    peft = PEFT | {"selection": selection, "manifest": manifest(STATE | with_prefix(selection))}
    write_adapter(tmp_path, CHECKPOINT | {"peft": peft})
    whole, read = (tmp_path / name).read_bytes(), read_checkpoint(tmp_path)
    refused = 0
    for place in range(len(whole)):
        (tmp_path / name).write_bytes(flipped(whole, place))
        try:
            found = read_checkpoint(tmp_path)
        except ValueError:
            refused += 1
        else:
            assert equal(found, read), f"byte {place} was changed without a word"
    assert refused > 0.8 * len(whole)


def test_adapters_without_hashes_are_read(tmp_path: Path) -> None:
    write_adapter(tmp_path, CHECKPOINT)
    change_config(tmp_path, lambda config: None, hashed=False)
    read = read_checkpoint(tmp_path)
    assert equal(read["state_dict"], STATE)
    assert "sha256" not in read["peft"]["manifest"]["backbone.scale"]


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.update({"selection/foo": torch.zeros(1)}),
            "selection/foo, and .* nothing was selected",
        ),
        (
            lambda tensors: tensors.update({"backbone.scale": torch.tensor(2.0).half()}),
            "backbone.scale has another dtype",
        ),
        (lambda tensors: tensors.update({"backbone.scale": torch.tensor([2.0])}), "backbone.scale has another shape"),
        (lambda tensors: tensors.update({"more": torch.zeros(1)}), "more is not in the manifest"),
        (lambda tensors: tensors.pop("backbone.scale"), "it lacks backbone.scale"),
    ],
)
def test_tensors_that_the_manifest_does_not_list(change: Any, message: str, hashed: bool, tmp_path: Path) -> None:
    write_adapter(tmp_path, CHECKPOINT)
    change_config(tmp_path, lambda config: None, hashed=hashed)
    tensors = load_file(tmp_path / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(peft=None), "its 'peft' is None; expected a mapping"),
        (lambda config: config.update(selected="no"), "its 'selected' is 'no'; expected true or false"),
        (lambda config: config["peft"].pop("manifest"), "it has no 'peft/manifest', where a mapping is expected"),
        (lambda config: config["peft"].update(manifest={}), "backbone.head.weight is not in the manifest"),
        (lambda config: config["peft"].update(format="2"), "checkpoint format 2: this version of Graft reads format 2"),
        (lambda config: config["hyper_parameters"].pop("_class_path"), "it has no 'hyper_parameters/_class_path'"),
        (lambda config: config.update(extra=1), "has the unknown entry 'extra': it is damaged, or of a newer version"),
    ],
)
def test_wrong_entries_of_an_adapter(change: Any, message: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, CHECKPOINT)
    change_config(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path)


# checkpoint files


def test_no_flipped_bit_of_a_checkpoint_changes_a_value(tmp_path: Path) -> None:
    """Nor of the optimizer: the whole file has checksums."""
    checkpoint = CHECKPOINT | {"optimizer_states": [{"state": {0: {"exp_avg": torch.arange(50.0)}}}]}
    torch.save(checkpoint, tmp_path / "model.ckpt")
    whole = (tmp_path / "model.ckpt").read_bytes()
    refused = 0
    for place in range(0, len(whole), 3):
        (tmp_path / "model.ckpt").write_bytes(flipped(whole, place))
        try:
            found = read_checkpoint(tmp_path / "model.ckpt")
        except ValueError:
            refused += 1
        else:
            states = found.pop("optimizer_states"), checkpoint["optimizer_states"]
            assert equal(found, CHECKPOINT), f"byte {place} was changed without a word"
            assert equal(states[0][0], states[1][0]), f"byte {place} was changed without a word"
    assert refused > 0.1 * len(whole) / 3  # the most is padding


def test_a_tensor_larger_than_its_file(tmp_path: Path) -> None:
    large = STATE | {"backbone.scale": torch.zeros(1).expand(10**12)}
    torch.save(CHECKPOINT | {"state_dict": large}, tmp_path / "model.ckpt")
    with pytest.raises(
        ValueError, match=r"'state_dict/backbone.scale' is a tensor \(1000000000000,\) .* stored tensor"
    ):
        read_checkpoint(tmp_path / "model.ckpt")


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


def test_long_lists_of_problems_are_cut() -> None:
    expected = {f"layer{i:02}": torch.zeros(1) for i in range(20)}
    with pytest.raises(ValueError, match=r"missing layer00; .*missing layer07; and 12 more"):
        check_delta(expected, {})
