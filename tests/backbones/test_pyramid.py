"""Maps of a backbone."""

import pytest
import timm
import torch

from backbones.pyramid import ViTPyramid, even_blocks, patch_maps, stage_maps, stages
from tests.conftest import BACKBONE, TINY

SMALL = {"img_size": 64, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}


def test_sizes_of_the_pyramid() -> None:
    pyramid = ViTPyramid(8)
    maps = pyramid([torch.randn(2, 8, 6, 4) for _ in range(4)])
    assert [tuple(x.shape) for x in maps] == [(2, 8, 24, 16), (2, 8, 12, 8), (2, 8, 6, 4), (2, 8, 3, 2)]
    assert sum(p.numel() for p in pyramid.parameters()) == 3 * (8 * 8 * 4 + 8)


def test_places_of_patches() -> None:
    """The map of a plain ViT has its patches row by row, without the class token, at an image of another size."""
    vit = timm.create_model(BACKBONE, **TINY | {"dynamic_img_size": True}).eval()
    images = torch.randn(2, 3, 24, 40)
    first, last, final = patch_maps(vit, images, [0, 1], final=True)
    tokens = vit.forward_features(images)
    assert first.shape == last.shape == (2, 48, 3, 5)
    torch.testing.assert_close(final.flatten(2).mT, tokens[:, 1:])
    torch.testing.assert_close(vit.norm(last.flatten(2).mT), tokens[:, 1:])
    assert torch.equal(patch_maps(vit, images, [1, 1])[1], last)
    assert torch.equal(patch_maps(vit, images, [], final=True)[0], final)


def test_evenly_spaced_blocks() -> None:
    def depth(blocks: int) -> torch.nn.Module:
        return timm.create_model(BACKBONE, **TINY | {"depth": blocks, "embed_dim": 6})

    assert even_blocks(depth(12)) == [2, 5, 8, 11]
    assert even_blocks(depth(24)) == [5, 11, 17, 23]
    assert even_blocks(depth(2)) == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet18", "convnext_atto"])
def test_stages(name: str) -> None:
    """Stages with strides 4 to 32 have the channels and sizes of their maps; a ResNet has a stride of 2 as well."""
    network = timm.create_model(name, **(SMALL if name.startswith("swin") else {})).eval()
    found = stages(network)
    assert found is not None
    with torch.no_grad():
        maps = stage_maps(network, torch.randn(1, 3, 64, 64), list(found))
    sides = dict(zip(found.values(), (16, 8, 4, 2), strict=True))
    expected = [(1, channels, side, side) for channels, side in sides.items()]
    assert [tuple(x.shape) for x in maps] == expected


def test_backbones_without_maps() -> None:
    assert stages(timm.create_model(BACKBONE, **TINY)) is None
    with pytest.raises(ValueError, match="MlpMixer has no maps of strides 4, 8, 16 and 32"):
        stages(timm.create_model("mixer_s32_224"))
