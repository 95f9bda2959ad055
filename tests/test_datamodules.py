"""Datamodules as they are found by import."""

import inspect

import pytest

import datamodules
from datamodules import DATAMODULES
from datamodules.base import DataModule


def test_names_on_the_command_line() -> None:
    names = {"CIFAR100", "FGVC", "FewShot", "ImageDataset", "ImageNet", "MicroVTAB", "VTAB"}
    assert names | {f"ImageNet{letter}" for letter in ("A", "C", "R", "Sketch", "V2")} <= set(DATAMODULES)


@pytest.mark.parametrize("name", DATAMODULES)
def test_datamodule(name: str) -> None:
    cls = DATAMODULES[name]
    assert getattr(datamodules, name) is cls
    assert cls.__name__ == name
    assert issubclass(cls, DataModule)
    assert not inspect.isabstract(cls)
    assert cls.__doc__


def test_package_has_no_other_class() -> None:
    assert {name for name, value in vars(datamodules).items() if isinstance(value, type)} == set(DATAMODULES)
    assert not hasattr(datamodules, "info"), "a loop variable became a global"
