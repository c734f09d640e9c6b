"""The cache of decoded splits: used while intact, rebuilt when damaged."""

from pathlib import Path

import pytest

from resnet_jax.data.images import fit
from resnet_jax.data.readers import array_cache
from tests.data.tiny_dataset import (
    load,
    own_cache,
    same_sets,
    tiny,
    tiny_original,
)

__all__ = ["own_cache", "tiny", "tiny_original"]


def test_second_load_decodes_nothing(tiny, monkeypatch, own_cache):
    first = load(tiny, train="train", test="test")
    assert not list(own_cache.rglob(".*"))  # temporary files
    monkeypatch.setattr(fit, "decode_image", None)  # calling it would fail
    assert same_sets(load(tiny, train="train", test="test"), first)


@pytest.mark.parametrize("victim", ["train-images.npy", "train-labels.npy", "train.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damaged_cache_is_noticed_and_rebuilt(tiny, own_cache, victim, damage):
    first = load(tiny)
    (path,) = own_cache.rglob(victim)
    good = path.read_bytes()
    flipped = good[:-3] + bytes([good[-3] ^ 1]) + good[-2:]
    bad = {"flip": flipped, "cut": good[:-5], "empty": b"", "remove": None}[damage]
    path.unlink() if bad is None else path.write_bytes(bad)
    assert same_sets(load(tiny), first)
    assert path.read_bytes() == good


@pytest.mark.parametrize("position", range(10, 100, 6))
def test_damaged_cache_header_is_noticed(tiny, own_cache, position):
    first = load(tiny)
    (path,) = own_cache.rglob("train-labels.npy")
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)
    assert same_sets(load(tiny), first)


def test_cached_images_of_another_shape_are_not_taken(tiny, own_cache):
    first = load(tiny)
    (path,) = own_cache.rglob("train-images.npy")
    good = path.read_bytes()
    path.write_bytes(good.replace(b"(20, 4, 5, 3)", b"(20, 5, 4, 3)"))
    assert path.read_bytes() != good
    assert same_sets(load(tiny), first)


def test_cache_that_cannot_be_written_is_done_without(tiny, own_cache):
    own_cache.write_text("a file where the folder should be")
    assert len(load(tiny).splits["train"]) == 20


def test_cache_folder_is_safe_for_names_with_a_config(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    folder = array_cache.cache_folder("imagenet_resized/8x8:0.1.0", "abc")
    assert folder == Path.home() / ".cache/resnet_jax/datasets/imagenet_resized_8x8_0.1.0-abc"
