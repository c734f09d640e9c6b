"""Packages whose versions don't fit together."""

import importlib.metadata

import pytest

from resnet_jax.doctor import versions
from tests.doctor.helpers import run_doctor


@pytest.fixture
def installed(monkeypatch):
    """Pretend other versions; None for a package that isn't installed."""
    real = importlib.metadata.version

    def pretend(others):
        def version(name):
            found = others.get(name, "real")
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name) if found == "real" else found

        monkeypatch.setattr(importlib.metadata, "version", version)
        return [(f.status, f.message, f.remedy) for f in versions.check_versions(present={})]

    return pretend


def test_the_installed_versions_fit(installed):
    ((status, message, _),) = installed({})
    assert status == "ok"
    assert message.startswith("python 3.")


@pytest.mark.parametrize(
    ("others", "message", "remedy"),
    [
        ({"jax": "0.9.1"}, "jax is 0.9.1, but resnet-linen", "pip install 'jax<0.13,>=0.10'"),
        ({"optax": None}, "optax isn't installed, but resnet-linen", "pip install 'optax>=0.2.8'"),
        ({"jaxlib": "0.9.0"}, "jaxlib is 0.9.0, but jax ", "pip install 'jaxlib"),
        ({"orbax-checkpoint": "1.0.0"}, "orbax-checkpoint is 1.0.0, but", "pip install 'orbax-"),
        ({"libtpu": "0.0.1"}, "libtpu is 0.0.1, but jax ", "pip install 'libtpu=="),
    ],
)
def test_a_version_out_of_range_is_a_failure(others, message, remedy, installed):
    failures = [line for line in installed(others) if line[1].startswith(message)]
    assert [(status, advice.startswith(remedy)) for status, _, advice in failures] == [
        ("fail", True)
    ]


def test_a_plugin_that_jax_would_ignore_is_a_failure(monkeypatch, installed):
    real = importlib.metadata.requires
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda name: ["jax-cuda13-pjrt==0.9.9"] if "plugin" in name else real(name),
    )
    lines = installed({"jax-cuda13-plugin": "0.9.9", "jax-cuda13-pjrt": "0.9.8"})
    assert {status for status, *_ in lines} == {"fail"}
    messages = [message for _, message, _ in lines]
    jaxlib = importlib.metadata.version("jaxlib")
    assert f"jax-cuda13-plugin is 0.9.9, but jaxlib is {jaxlib}: JAX won't use the GPU" in messages
    assert any(
        message.startswith("jax-cuda13-pjrt is 0.9.8, but jax-cuda13") for message in messages
    )


def test_a_tpu_without_its_library_is_a_warning():
    lines = list(versions.check_versions(present={"tpu": "/dev/accel0"}))
    assert [line.status for line in lines] == ["warn", "ok"]
    assert "libtpu isn't installed" in lines[0].message


def test_a_version_mismatch_ends_with_78(capsys, quick, installed):
    installed({"flax": "0.1"})
    code, found = run_doctor(capsys)
    assert code == 78
    assert found["versions"][0]["message"].startswith(
        "flax is 0.1, but resnet-linen 0.1.0 needs >="
    )


def test_it_is_said_what_can_be_compiled_for(monkeypatch):
    found = {"jax-cuda12-plugin": "0.10.2"}
    monkeypatch.setattr(versions, "_version", found.get)
    (finding,) = versions.check_compilers()
    assert finding.status == "ok"
    assert "TPUs no (pip install -e '.[tpu]'), GPUs yes" in finding.message
    found.clear()
    (finding,) = versions.check_compilers()
    assert "GPUs no (pip install -e '.[gpu-compile]')" in finding.message
