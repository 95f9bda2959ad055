"""The datamodules: one file per benchmark or form of data."""

from datamodules.cifar100 import CIFAR100
from datamodules.few_shot import FewShot
from datamodules.fgvc import FGVC
from datamodules.image_dataset import ImageDataset
from datamodules.imagenet import ImageNet
from datamodules.robustness import ImageNetA, ImageNetC, ImageNetR, ImageNetSketch, ImageNetV2
from datamodules.vtab import VTAB, MicroVTAB

__all__ = [
    "CIFAR100",
    "FGVC",
    "VTAB",
    "FewShot",
    "ImageDataset",
    "ImageNet",
    "ImageNetA",
    "ImageNetC",
    "ImageNetR",
    "ImageNetSketch",
    "ImageNetV2",
    "MicroVTAB",
]
