"""Show versions, devices and weights that are found here, and what is missing."""

import importlib
import os
import platform
import shutil
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


class Finding(NamedTuple):
    """One line of the report.

    Args:
        name: Name of a package, device or folder.
        found: Its version, size or content.
        fault: What is wrong and what to do, if this stops runs.
        note: What to know, if it does not.
    """

    name: str
    found: str
    fault: str = ""
    note: str = ""


def doctor() -> None:
    """Show versions, devices and weights that are found here. The exit code is 1 if something stops every run.

    Raises:
        SystemExit: If a package is missing or too old, or the run folder cannot be written.
    """
    faults = 0
    for title, findings in {"versions": versions, "devices": devices, "weights": weights, "folders": folders}.items():
        print(title)
        for finding in findings():
            print(f"  {finding.name:<24} {finding.found}")
            if finding.fault or finding.note:
                print(f"    {'FAULT: ' if finding.fault else ''}{finding.fault or finding.note}")
            faults += bool(finding.fault)
    if faults:
        print(f"{faults} {'fault' if faults == 1 else 'faults'}")
        sys.exit(1)
    print("nothing that stops a run")


def versions() -> list[Finding]:
    """Installed versions beside the lowest ones of ``pyproject.toml``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [Finding("python", platform.python_version())]
    found += [package(Requirement(line)) for line in project["dependencies"]]
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        found.append(
            Finding("torch with torchvision", "cannot be imported", f"{reason}: install builds of one release")
        )
    for extra, lines in project["optional-dependencies"].items():
        needed = [Requirement(line) for line in lines]
        found += [package(one, extra) for one in needed if extra != "dev" and one.name != project["name"]]
    return found


def package(needed: Requirement, extra: str = "") -> Finding:
    """Installed version of a package.

    Args:
        needed: Its name and versions, such as ``torch>=2.11``.
        extra: Extra of this project that it belongs to, if only some commands need it.
    """
    try:
        here = version(needed.name)
    except PackageNotFoundError:
        here = ""
    if here and needed.specifier.contains(here, prereleases=True):
        return Finding(needed.name, here)
    remedy = f"needs {needed}: pip install -e '.[{extra}]'" if extra else f"needs {needed}: pip install -e ."
    return Finding(needed.name, here or "not installed", **{"note" if extra else "fault": remedy})


def devices() -> list[Finding]:
    """Processor, memory and accelerators, with what bf16 needs."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    found = [
        Finding(
            "cpu",
            f"{cores} cores, {torch.get_num_threads()} threads" + (f" (OMP_NUM_THREADS={threads})" if threads else ""),
        )
    ]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        note = "" if card.major >= 8 else "has no fast bf16: pass --trainer.precision 16-mixed"
        found.append(Finding(f"cuda:{index}", f"{card.name}, {card.total_memory / 1024**3:.0f} GiB", note=note))
    if torch.backends.mps.is_available():
        found.append(Finding("mps", "Apple GPU"))
    if len(found) == 1:
        build = torch.version.cuda or torch.version.hip
        note = f"torch was built for {build} but sees no GPU" if build else "torch was built without GPU support"
        found.append(Finding("gpu", "none", note=note))
    return found


def weights() -> list[Finding]:
    """Backbones whose weights lie on this machine, and so need no network."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import CacheNotFound
    from torch import hub

    try:
        names = sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except CacheNotFound:
        names = []
    found = [Finding("Hugging Face cache", listed(names), note=f"folder {HF_HUB_CACHE}")]
    files = Path(hub.get_dir()) / "checkpoints"
    found.append(Finding("torch hub", listed(sorted(p.name for p in files.glob("*"))), note=f"folder {files}"))
    local = sorted(p.parent.as_posix() for p in Path("weights").glob("*/config.json"))
    return [*found, Finding("weights/", listed([f"local-dir:{name}" for name in local]))]


def listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "nothing"


def folders() -> list[Finding]:
    """Free space of the folder of runs, and where W&B writes to."""
    runs = Path("runs")
    parent = runs if runs.is_dir() else Path()
    free = shutil.disk_usage(parent).free / 1024**3
    fault = "" if os.access(parent, os.W_OK) else "cannot be written: pass --run_root FOLDER"
    online = bool(os.environ.get("WANDB_API_KEY")) or in_netrc("api.wandb.ai")
    login = "logged in" if online else "no key, so that runs stay offline: wandb login"
    return [Finding("runs/", f"{free:.0f} GiB free", fault), Finding("wandb", login)]


def in_netrc(host: str) -> bool:
    """Whether the user's netrc file has a login for a host."""
    import netrc

    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
