"""The doctor names what is broken, and survives it."""

from __future__ import annotations

import builtins
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from forgetting import doctor
from forgetting.doctor import Finding, examine, verdict


def by_name(findings):
    return {finding.what: finding for finding in findings}


def test_every_needed_package_is_looked_at_and_nothing_is_broken_here():
    findings = by_name(examine())
    assert {"torch", "trl", "peft", "pyarrow", "lm-eval"} <= {n.replace("_", "-") for n in findings}
    assert not [f for f in findings.values() if f.level == "broken"]
    assert not {"pytest", "ruff"} & findings.keys()
    assert "GiB" in findings["memory"].detail


@pytest.mark.parametrize(
    ("found", "detail"), [(None, "is not installed"), ("0.1", "0.1, but forgetting needs")]
)
def test_a_missing_or_old_package_is_broken(monkeypatch, found, detail):
    version = doctor.version

    def other(name):
        if name != "trl":
            return version(name)
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(doctor, "version", other)
    finding = by_name(examine())["trl"]
    assert finding.level == "broken"
    assert detail in finding.detail


def test_an_optional_package_that_is_missing_is_a_note(monkeypatch):
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-package": "does nothing"})
    finding = by_name(examine())["no-such-package"]
    assert finding == Finding("no-such-package", "note", "not installed (optional: does nothing)")


@pytest.mark.parametrize("module", ["torch", "forgetting.models.loading"])
def test_what_cannot_be_imported_is_broken_and_the_rest_is_still_said(monkeypatch, module):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == module:
            raise ImportError("libcudart.so.13: cannot open shared object file")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    findings = examine()
    broken = [f for f in findings if f.level == "broken"]
    assert len(broken) == 1
    assert "libcudart" in broken[0].detail
    assert by_name(findings)["writing here"].level == "ok"


def test_arithmetic_that_fails_or_is_wrong_is_broken(monkeypatch):
    def fails(self, *args, **kwargs):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(torch.Tensor, "backward", fails)
    assert "no kernel image" in by_name(examine())["arithmetic"].detail
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
    assert by_name(examine())["arithmetic"].level == "broken"


def test_a_directory_that_cannot_be_written_is_broken(monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    finding = by_name(examine())["writing here"]
    assert finding.level == "broken"
    assert "Permission denied" in finding.detail


def test_the_verdict_says_where_recipes_run():
    found = [Finding("GPU 0", "ok", "a card"), Finding("torch", "ok", "2")]
    assert verdict(found) == "Recipes can run here, on the GPU."
    found[0] = Finding("GPU", "note", "none")
    assert verdict(found).startswith("Recipes can run here, on the CPU.")
    found += [Finding("trl", "broken", "is not installed"), Finding("disk", "broken", "full")]
    assert verdict(found) == "Recipes cannot run here. Fix what is broken first: trl, disk."
