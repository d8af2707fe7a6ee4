"""Checks this machine: devices, memory, versions, and what is missing.

Output: a list of findings. Knows nothing of recipes or runs.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

Level = Literal["ok", "note", "broken"]
OPTIONAL = {
    "bitsandbytes": "loads base models in 4 or 8 bits",
    "deepspeed": "trains models that do not fit on one device",
    "flash-attn": "faster attention on GPUs",
    "tensorboard": "shows training curves during training",
    "wandb": "keeps training curves on Weights & Biases",
    "trackio": "keeps training curves locally",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    level: Level
    detail: str


def examine() -> list[Finding]:
    """Check this machine. A finding with level `broken` means that runs will fail."""
    return [
        Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        *_packages(),
        *_memory(),
        *_devices(),
        _writes_here(),
    ]


def verdict(findings: Sequence[Finding]) -> str:
    """In a sentence: whether recipes can run on this machine, and on what."""
    broken = [finding.what for finding in findings if finding.level == "broken"]
    if broken:
        return f"Recipes cannot run here. Fix what is broken first: {', '.join(broken)}."
    if any(finding.what.startswith("GPU") and finding.level == "ok" for finding in findings):
        return "Recipes can run here, on the GPU."
    return (
        "Recipes can run here, on the CPU. That is enough for the demo and for small models. "
        "Larger ones need a GPU."
    )


def _packages() -> list[Finding]:
    findings = []
    for line in requires("forgetting") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            findings.append(Finding(requirement.name, "broken", "is not installed"))
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        wanted = "" if fits else f", but forgetting needs {requirement.specifier}"
        findings.append(Finding(requirement.name, "ok" if fits else "broken", f"{found}{wanted}"))
    for name, use in OPTIONAL.items():
        try:
            findings.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            findings.append(Finding(name, "note", f"not installed (optional: {use})"))
    return findings


def _memory() -> list[Finding]:
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(Path.cwd())
    gib = 2**30
    return [
        Finding(
            "memory",
            "ok",
            f"{memory.available / gib:.1f} GiB free of {memory.total / gib:.1f}, "
            f"{psutil.cpu_count(logical=False) or psutil.cpu_count()} cores",
        ),
        Finding(
            "disk here",
            "ok" if disk.free > gib else "note",
            f"{disk.free / gib:.1f} GiB free" + ("" if disk.free > gib else ", less than 1 GiB"),
        ),
    ]


def _devices() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Finding("devices", "broken", f"torch cannot be imported: {error}")]
    findings = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        findings.append(
            Finding(
                f"GPU {index}",
                "ok",
                f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, bfloat16 "
                + ("in hardware" if bf16 else "not in hardware: use float32"),
            )
        )
    if torch.backends.mps.is_available():
        findings.append(Finding("GPU", "ok", "Apple MPS"))
    if not findings:
        findings.append(Finding("GPU", "note", "none: everything runs on the CPU"))
        bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        findings.append(
            Finding(
                "CPU",
                "ok",
                "bfloat16 " + ("in hardware" if bf16 else "not in hardware: use float32"),
            )
        )
    findings.append(_computes())
    return findings


def _computes() -> Finding:
    """Computes a gradient of a small product on the device that runs use."""
    import torch

    try:
        from forgetting.models.loading import pick_device
    except (ImportError, OSError) as error:
        return Finding("arithmetic", "broken", f"transformers cannot be imported: {error}")
    device = pick_device()
    try:
        values = torch.full((8, 8), 0.5, device=device, requires_grad=True)
        (values @ values).sum().backward()
        good = values.grad is not None and bool(torch.isfinite(values.grad).all())
    except RuntimeError as error:
        return Finding("arithmetic", "broken", f"fails on {device}: {error}")
    return Finding(
        "arithmetic", "ok" if good else "broken", f"{'works' if good else 'is wrong'} on {device}"
    )


def _writes_here() -> Finding:
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()) as file:
            file.write(b"x")
    except OSError as error:
        return Finding("writing here", "broken", f"{Path.cwd()}: {error.strerror}")
    return Finding("writing here", "ok", str(Path.cwd()))
