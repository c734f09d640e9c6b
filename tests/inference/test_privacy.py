"""What must not leave this machine is found, and what may is not mistaken for it."""

import getpass
import socket

import pytest

from resnet_jax.config.io import from_json, to_json
from resnet_jax.config.schema import default_config
from resnet_jax.errors import ConfigError
from resnet_jax.inference.privacy import check_private, public_config


@pytest.fixture(autouse=True)
def _alice(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "ws17.lab")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('"dir": "/home/alice/data"', "a path"),
        ("--workdir=/scratch/runs", "a path"),
        ("in ~/runs/mine", "a path"),
        ("workdir:/scratch/runs", "a path"),
        ("C:/Users/bob", "a path"),
        (r'"C:\\Users\\bob"', "a path"),
        ("file:///x", "a path"),
        ("trained on ws17.lab", "the name of this host"),
        ("by alice.", "the name of this user"),
        ("key 0123456789abcdef", "a token"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "a token"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "a token"),
        ("the other token", "a token"),
    ],
)
def test_what_is_private_is_refused_and_not_repeated(text, kind):
    with pytest.raises(ConfigError, match=f"README.md would hold {kind}") as caught:
        check_private({"README.md": text}, token="the other token")
    assert text not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/a/b/c",
        '"fc/rms": 0.1, "layer1_0/conv1/norm": 2',
        "PyTorch's names and/or layouts, images/s, 1/2/3",
        '"model": "timm/resnet50.a1_in1k"',
        "malice in wonderland",
        "uint8 [h, w, 3] each",
    ],
)
def test_what_is_not_private_passes(text):
    check_private({"README.md": text})


@pytest.mark.parametrize("name", ["train", "resnet20", "digits", "validation"])
def test_a_host_named_like_a_word_of_every_card_is_no_secret(name, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.setattr(getpass, "getuser", lambda: name)
    check_private({"config.json": to_json(default_config())})


def test_a_public_config_has_no_folders_and_no_paths():
    config = default_config()
    config.data.dir, config.prometheus_dir = "/home/alice/data", "/var/lib/collector"
    config.trackers = ("wandb",)
    config.init_from, config.distill.teacher = "/home/alice/w.safetensors", "../bob/t.npz"
    config.distill.model = "resnet20"
    public = public_config(config)
    assert (public.data.dir, public.prometheus_dir) == (None, "")
    assert public.trackers == ("tensorboard",)
    assert (public.init_from, public.distill.teacher) == ("w.safetensors", "t.npz")
    assert config.init_from == "/home/alice/w.safetensors"  # the run's own stays
    check_private({"config.json": to_json(public)})
    assert to_json(from_json(to_json(public))) == to_json(public)


@pytest.mark.parametrize("reference", ["timm/resnet50.a1_in1k", "resnet20.digits"])
def test_names_of_published_weights_stay(reference):
    config = default_config()
    config.init_from = reference
    assert public_config(config).init_from == reference
