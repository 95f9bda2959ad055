"""The two lists of dependencies are one."""

import tomllib

import yaml

from tests.conftest import ROOT


def test_environment_equals_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    extras = project["optional-dependencies"]
    extras["dev"], (last,) = extras["dev"][:-1], extras["dev"][-1:]
    names = sorted(extras.keys() - {"dev"})
    assert last == f"{project['name']}[{','.join(names)}]", "development needs all extras"
    assert pip == [*project["dependencies"], *extras["dev"], *(line for name in names for line in extras[name])]


def test_nothing_is_installed_at_the_top_level() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tools == {"packages": [], "py-modules": []}
