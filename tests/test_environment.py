"""The two lists of dependencies are one."""

import tomllib

import yaml

from tests.conftest import ROOT


def test_environment_equals_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    extras = project["optional-dependencies"]
    assert extras["dev"].pop() == f"{project['name']}[grid,mat,onnx,sam,video]"
    names = ("dev", "grid", "mat", "onnx", "sam", "video")
    assert pip == project["dependencies"] + [package for name in names for package in extras[name]]


def test_nothing_is_installed_at_the_top_level() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tools == {"packages": [], "py-modules": []}
