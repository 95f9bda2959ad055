"""The two lists of dependencies are one."""

import tomllib

import yaml

from tests.conftest import ROOT


def test_environment_equals_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    extras = project["optional-dependencies"]
    assert extras["dev"].pop() == f"{project['name']}[detection,grid,mat,onnx,sam]"
    groups = [extras[name] for name in ("dev", "detection", "grid", "mat", "onnx", "sam")]
    assert pip == [package for group in (project["dependencies"], *groups) for package in group]


def test_nothing_is_installed_at_the_top_level() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tools == {"packages": [], "py-modules": []}
