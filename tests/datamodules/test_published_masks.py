"""Published sets of masks; their files are tested with each set."""

from datamodules import DATAMODULES
from datamodules.ade20k import ADE20K
from datamodules.coco_stuff import COCOStuff
from datamodules.palette import palette
from datamodules.published_masks import PublishedMasks


def test_which_sets_are_published() -> None:
    found = {name for name, cls in DATAMODULES.items() if issubclass(cls, PublishedMasks)}
    assert found == {"ADE20K", "COCOStuff"}


def test_colours_beyond_the_classes(tmp_path: object) -> None:
    for data in (ADE20K(str(tmp_path)), COCOStuff(str(tmp_path))):
        count = 3 * data.num_classes
        assert data.palette[count:] == palette()[count:]
        assert data.palette[:count] != palette()[:count]
