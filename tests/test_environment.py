"""The two lists of dependencies are one."""

import tomllib

import yaml

from tests.conftest import ROOT


def test_environment_equals_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    extras = project["optional-dependencies"]
    name, _, others = extras["dev"].pop().rstrip("]").partition("[")
    assert name == project["name"]
    joined = [line for extra in others.split(",") for line in extras[extra]]
    assert pip == project["dependencies"] + extras["dev"] + joined
    assert {*others.split(","), "dev"} == extras.keys(), "dev has all extras"


def test_nothing_is_installed_at_the_top_level() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tools == {"packages": [], "py-modules": []}
