"""What a result records of the machine it was obtained on, and the checks on what a user asks for."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def check_device(device: str) -> str:
    """``device`` when torch can use it here.

    Raises:
        ValueError: not a device name, or one this machine does not have; the message lists those it has.
    """
    usable = ["cpu"]
    if torch.cuda.is_available():
        usable += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        usable.append("mps")
    if device not in usable:
        raise ValueError(f"device must be one of {', '.join(usable)} on this machine, got {device!r}")
    return device


def describe(device: str) -> dict[str, Any]:
    """Device, versions and commit, as a result stores them."""
    return {"device": device_name(device), "versions": versions(), "commit": commit()}


def device_name(device: str) -> str:
    """The hardware in words: GPU name, or CPU model and threads in use."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_model()}, {threads} thread{'' if threads == 1 else 's'}"


@functools.cache
def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, everyformer and the libraries that results depend on, those that are installed."""
    found = {"python": platform.python_version()}
    for name in (
        "everyformer",
        "torch",
        "lightning",
        "triton",
        "transformers",
        "diffusers",
        "torch_geometric",
        "numpy",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str:
    """The checkout's commit, with '+' when the library's files differ from it; 'release' outside a checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return "release"
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
