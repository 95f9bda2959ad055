"""Packed files of low-bit adapters: written, read back as what the trained model computes, or refused."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from commands.export import export
from commands.import_packed import import_packed
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from tests.commands.test_export import images, trained
from tests.conftest import BACKBONE, TINY
from train import main

Build = Callable[..., PEFTMethod]
MAGIC = b"LBADPT01"


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and payload, read as the format is described."""
    data = path.read_bytes()
    assert data[:8] == MAGIC
    (length,) = struct.unpack("<I", data[8:12])
    return json.loads(data[12 : 12 + length]), data[12 + length :]


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("form", ["adaptformer", "lora"])
def test_a_packed_file_computes_the_same(form: str, bits: int, head: bool, build: Build, tmp_path: Path) -> None:
    options = {"bi_form": form, "bi_bits": bits, "bi_head": head, "bi_dim": 5, "bi_scale": 10.0}
    model: Any = trained(build("bi_adapter", **options, bi_codebook="official"), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "packed", "packed")
    header, payload = header_of(tmp_path / "packed")
    asked = (header["method"], header["bits"], header["h"], header["scale"], header["bihead"], header["num_classes"])
    assert asked == (form, bits, 5, 10.0, head, 3)
    assert (header["backbone"], header["codebook"]) == (BACKBONE, "official")
    assert len(payload) == model.storage_bytes() == sum(row["nbytes"] for row in header["records"])

    import_packed(tmp_path / "packed", tmp_path / "adapter")
    again = PEFTMethod.from_delta(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(again(images()), model(images()), atol=1e-5, rtol=0)
        if form == "lora":
            torch.testing.assert_close(again.merge()(images()), model(images()), atol=1e-5, rtol=0)

    # the same bytes without the header
    export(tmp_path / "run", tmp_path / "raw", "raw")
    assert (tmp_path / "raw").read_bytes() == payload


def test_records_of_the_header(build: Build, tmp_path: Path) -> None:
    trained(build("bi_adapter", bi_form="lora", bi_dim=4, bi_bits=2), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "packed", "packed")
    records = header_of(tmp_path / "packed")[0]["records"]
    names = [f"blocks.{i}.attn.lora_{m}.{way}" for i in (0, 1) for m in "qv" for way in ("down", "up")]
    assert [row["name"] for row in records] == [*names, "head.weight", "head.bias"]
    matrix = 4 * 48 * 2 // 8 + 8
    assert records[1] == {
        "name": names[1],
        "shape": [48, 4],
        "kind": "q",
        "bits": 2,
        "offset": matrix,
        "nbytes": matrix,
    }
    assert records[-1] | {"offset": 0} == {
        "name": "head.bias",
        "shape": [3],
        "kind": "f32",
        "bits": 32,
        "offset": 0,
        "nbytes": 12,
    }


RAW = {"bi_form": "lora", "bi_bits": 2, "bi_dim": 4, "bi_scale": 0.5, "num_classes": 3}


@pytest.fixture
def raw(build: Build, weights: Path, tmp_path: Path) -> tuple[Any, Path, dict[str, Any]]:
    """A trained model, its file without a header, and the options that read it."""
    model = trained(build("bi_adapter", bi_head=True, **RAW), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "raw", "raw")
    where = {"backbone": BACKBONE, "pretrained": str(weights), "backbone_args": TINY}
    return model, tmp_path / "raw", where | RAW | {"bi_head": True}


def test_a_file_without_a_header_needs_the_options(raw: Any, tmp_path: Path) -> None:
    model, path, options = raw
    import_packed(path, tmp_path / "adapter", **options, class_names=["a", "b", "c"])
    again: Any = PEFTMethod.from_delta(tmp_path / "adapter")
    assert again.class_names == ["a", "b", "c"]
    with torch.no_grad():
        torch.testing.assert_close(again(images()), model(images()), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="it has no header; say --backbone, --bi_form, --bi_bits, --bi_dim, --bi_sca"):
        import_packed(path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bi_bits": 4}, "truncated, or of other settings: 474 bytes of weights, and these settings have 858"),
        ({"bi_bits": 1}, "too long, or of other settings"),
        ({"bi_bits": 3}, "bi_bits=3: expected 1, 2, 4, 8"),
        ({"bi_dim": 8}, "truncated, or of other settings"),
        ({"bi_form": "adaptformer"}, "too long, or of other settings"),
        ({"bi_head": False}, "truncated, or of other settings"),
        ({"num_classes": 4}, "truncated, or of other settings"),
        ({"class_names": ["a"]}, "1 class_names for num_classes=3"),
        ({"bi_dim": 100}, r"bi_dim=100 is more than blocks\.0\.attn\.qkv can have"),
    ],
    ids=str,
)
def test_other_settings_are_refused(change: dict[str, Any], message: str, raw: Any, tmp_path: Path) -> None:
    _, path, options = raw
    with pytest.raises(ValueError, match=f"raw' cannot be read: {message}"):
        import_packed(path, tmp_path / "adapter", **options | change)
    assert not (tmp_path / "adapter").exists()


def changed(path: Path, **values: Any) -> bytes:
    """The file with other values in its header, and without its hash, as a file of before December 2026."""
    header, payload = header_of(path)
    header.pop("sha256")
    text = json.dumps(header | values).encode()
    return MAGIC + struct.pack("<I", len(text)) + text + payload


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.read_bytes()[:-1], "damaged: its content is not that of its sha256"),
        (lambda path: path.read_bytes() + b"x", "damaged: its content is not that of its sha256"),
        (lambda path: path.read_bytes()[:100], "truncated: its header ends at byte"),
        (lambda path: path.read_bytes()[:10], "truncated: its header ends at byte"),
        (lambda path: MAGIC, "truncated: its header ends at byte"),
        (lambda path: MAGIC + struct.pack("<I", 2) + b"{]", "its header is no valid JSON"),
        (lambda path: MAGIC + struct.pack("<I", 2) + b"\xff\xfe", "its header is no valid JSON"),
        (lambda path: MAGIC + struct.pack("<I", 2) + b"[]", "its header is no JSON object"),
        (lambda path: MAGIC + struct.pack("<I", 11) + b'{"bits": 1}', "its header is not complete; say --backbone"),
        (lambda path: b"", "it has no header"),
        (lambda path: b"x" + path.read_bytes()[1:], "it has no header"),
        (lambda path: changed(path, h=16), "its header lists other tensors"),
        (lambda path: changed(path, records=[]), "its header lists other tensors"),
        (lambda path: changed(path, h="32"), "'<' not supported"),
        (lambda path: changed(path, codebook="mine"), "bi_codebook='mine': expected l1_optimal or official"),
        (lambda path: changed(path, fingerprint="0"), "this delta was trained on other weights"),
    ],
)
def test_damaged_files_are_refused(change: Callable[[Path], bytes], message: str, build: Build, tmp_path: Path) -> None:
    trained(build("bi_adapter"), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "packed", "packed")
    (tmp_path / "packed").write_bytes(change(tmp_path / "packed"))
    with pytest.raises(ValueError, match=f"cannot be read: {message}"):
        import_packed(tmp_path / "packed", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_options_that_differ_from_the_header_are_refused(build: Build, tmp_path: Path) -> None:
    trained(build("bi_adapter"), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "packed", "packed")
    with pytest.raises(ValueError, match="bi_bits is 1 in its header, and here 2"):
        import_packed(tmp_path / "packed", tmp_path / "adapter", bi_bits=2)
    with pytest.raises(ValueError, match="this delta was trained on other weights"):
        import_packed(tmp_path / "packed", tmp_path / "adapter", pretrained=False)


def test_nothing_is_overwritten(build: Build, tmp_path: Path) -> None:
    trained(build("bi_adapter"), tmp_path / "run")
    (tmp_path / "packed").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        export(tmp_path / "run", tmp_path / "packed", "packed")
    assert (tmp_path / "packed").read_text() == "mine"
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        import_packed(tmp_path / "packed", tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="nothing': no such file"):
        import_packed(tmp_path / "nothing", tmp_path / "adapter")


def test_other_methods_are_refused(build: Build, weights: Path, tmp_path: Path) -> None:
    trained(build("lora"), tmp_path / "run")
    with pytest.raises(ValueError, match="for low-bit adapters, and the method of this checkpoint is LoRA"):
        export(tmp_path / "run", tmp_path / "packed", "packed")
    stacked = compose(METHODS["bi_adapter"], METHODS["bitfit"], task=Classification)(
        backbone=BACKBONE, backbone_args=TINY, pretrained=str(weights), num_classes=3
    )
    model: Any = trained(stacked, tmp_path / "stacked")
    with pytest.raises(ValueError, match=r"has trained blocks\.0\.attn\.proj\.bias, .* has no place for"):
        export(tmp_path / "stacked", tmp_path / "packed", "packed")
    assert not (tmp_path / "packed").exists()
    biases = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")) - 3
    assert model.storage_bytes() == 4 * (32 * 48 // 8 + 8) + 4 * 49 * 3 + 4 * biases


def test_from_the_command_line(images: Path, build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Export, import with the line that it prints, test; a packed file is no checkpoint and says so."""
    trained(build("bi_adapter", bi_form="lora", bi_head=True), tmp_path / "run")
    data = ["--data", "ImageDataset", "--data.root", str(images), "--run_root", str(tmp_path / "runs")]
    data += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    main(["test", "--ckpt_path", str(tmp_path / "run"), *data])
    expected = re.findall(r"test/loss .*?([\d.]+)", capsys.readouterr().out)
    for form in ("packed", "raw"):
        main(["export", "--ckpt_path", str(tmp_path / "run"), "--output", str(tmp_path / form), "--format", form])
        said = capsys.readouterr().out
        assert "1,626 bytes of weights (1.6 KB)" in said
        command = re.findall(r"python train.py (import_packed .*)", said)[0].replace(
            "ADAPTER", str(tmp_path / f"{form}2")
        )
        options = [] if form == "packed" else ["--pretrained", str(build("full").pretrained)]
        options += [] if form == "packed" else [f"--backbone_args={json.dumps(TINY)}"]
        main([*command.split(), *options])
        capsys.readouterr()
        main(["test", "--ckpt_path", str(tmp_path / f"{form}2"), *data])
        assert re.findall(r"test/loss .*?([\d.]+)", capsys.readouterr().out) == expected
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path", str(tmp_path / "packed"), *data])
    assert "is a packed file; make it an adapter folder first" in capsys.readouterr().err
