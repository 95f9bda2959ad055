"""The datamodules: one file per benchmark or form of data."""

from datamodules.image_dataset import ImageDataset

__all__ = ["ImageDataset"]
