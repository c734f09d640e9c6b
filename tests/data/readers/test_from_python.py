"""Data passed in Python: the arrays of other readers, and one line for every mistake."""

import dataclasses
import pickle
import threading
import time

import grain
import jax
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.datasets import load_dataset, open_source
from resnet_jax.data.images.preprocessing import ScaleAndCrop
from resnet_jax.data.loaders.crop_sizes import CropSizes
from resnet_jax.data.loaders.sampler import IndexSampler
from resnet_jax.data.loaders.streaming import StreamingLoader
from resnet_jax.data.readers.from_python import PythonData, open_python_data
from resnet_jax.data.readers.python_examples import SourceRecords
from resnet_jax.errors import ConfigError, DataError, UsageError
from resnet_jax.parallel.mesh import make_mesh
from tests.data.readers.test_folders import write
from tests.data.tiny_dataset import encode, own_cache, same_sets

__all__ = ["own_cache"]

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 6, 5, 3), np.uint8)
LABELS = np.arange(30) % 3


def _load(splits, *, names=(), crop=None, channels=None, **options):
    source = open_python_data(PythonData(splits, names), crop=crop, channels=channels)
    roles = {"train": "train"} | ({"test": "test"} if "test" in splits else {})
    return load_dataset("arrays", splits=options.pop("roles", roles), source=source, **options)


@dataclasses.dataclass
class Source:
    """PyGrain's protocol; `calls` are the threads that are in `__getitem__`."""

    examples: list
    calls: int = 0
    most_calls: int = 0

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.calls += 1
        self.most_calls = max(self.most_calls, self.calls)
        time.sleep(0.001)
        self.calls -= 1
        return self.examples[index]


def _dictionaries(images, labels):
    return [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]


FORMS = {
    "a list of pairs": lambda: list(zip(PIXELS, LABELS, strict=True)),
    "dictionaries": lambda: Source(_dictionaries(PIXELS, LABELS)),
    "lists in a list": lambda: [[image, int(label)] for image, label in zip(PIXELS, LABELS)],  # noqa: B905
    "Pillow's images": lambda: [(Image.fromarray(i), n) for i, n in zip(PIXELS, LABELS)],  # noqa: B905
    "files": lambda: Source(_dictionaries([encode(image) for image in PIXELS], LABELS)),
    "arrays of JAX": lambda: (jax.numpy.asarray(PIXELS), jax.numpy.asarray(LABELS)),
    "unsigned labels": lambda: (PIXELS, LABELS.astype(np.uint8)),
    "Grain": lambda: grain.MapDataset.source(list(zip(PIXELS, LABELS))).map(  # noqa: B905
        lambda example: {"image": example[0], "label": example[1]}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_arrays_and_fingerprint(form):
    expected = _load({"train": (PIXELS, LABELS)})
    np.testing.assert_array_equal(expected.splits["train"].images, PIXELS)
    np.testing.assert_array_equal(expected.splits["train"].labels, LABELS)
    assert expected.splits["train"].labels.dtype == np.int32
    found = _load({"train": FORMS[form]()})
    assert same_sets(found, expected)
    assert found.fingerprint == expected.fingerprint
    assert found.class_names == ("0", "1", "2")


def test_digits_passed_in_python_are_the_digits():
    digits = open_source("digits", None)
    splits = {split: digits.read(split)[:2] for split in digits.lengths}
    splits["train"] = (splits["train"][0][..., 0], splits["train"][1])  # grey, without the axis
    roles = {"train": "train[:1293]", "validation": "train[1293:]", "test": "test"}
    expected = load_dataset("digits", splits=roles)
    found = _load(splits, roles=roles)
    assert same_sets(found, expected)
    assert (found.fingerprint, found.class_names) == (expected.fingerprint, expected.class_names)


def test_the_arrays_of_the_caller_can_still_be_written():
    images = PIXELS.copy()
    data = _load({"train": (images, LABELS)})
    assert not data.splits["train"].images.flags.writeable
    assert np.shares_memory(data.splits["train"].images, images)
    images[0] = 1


@pytest.mark.parametrize("form", ["arrays", "a list of pairs", "files"])
def test_images_are_scaled_as_those_of_a_folder(form, tmp_path):
    root = write(tmp_path / "images", {"cat": 6, "dog": 6}, shape=(9, 7))
    crop = ScaleAndCrop.square(5, resize=6)
    folder = open_source("folder", str(root), crop=crop)
    files = list(folder.records("train").fetch(range(12)))
    examples = [(file.image, file.label) for file in files]
    if form != "files":
        examples = [(np.asarray(Image.open(root / f.where[1:-3])), f.label) for f in files]
    if form == "arrays":
        examples = tuple(map(np.array, zip(*examples, strict=True)))
    found = _load({"train": examples}, names=("cat", "dog"), crop=crop)
    expected = load_dataset("folder", splits={"train": "train"}, data_dir=str(root), crop=crop)
    assert same_sets(found, expected)
    assert found.fingerprint == expected.fingerprint


@pytest.mark.parametrize("form", ["files", "arrays", "a list of pairs"])
def test_random_crops_are_those_of_a_folder(form, tmp_path):
    root = write(tmp_path / "images", {"cat": 8, "dog": 8}, shape=(20, 24))
    of_folder = load_dataset(
        "folder", splits={"train": "train"}, data_dir=str(root), streamed=["train"]
    )
    _, records = of_folder.streamed["train"].parts[0]
    examples = [(record.image, record.label) for record in records.fetch(range(16))]
    if form != "files":
        decoded = [np.asarray(Image.open(root / r.where[1:-3])) for r in records.fetch(range(16))]
        examples = list(zip(decoded, [label for _, label in examples], strict=True))
    if form == "arrays":
        examples = tuple(map(np.array, zip(*examples, strict=True)))
    passed = _load({"train": examples}, channels=3, streamed=["train"])
    assert passed.class_names == ("0", "1")

    def pieces(data):
        loader = StreamingLoader(
            data.streamed["train"],
            IndexSampler(3, 16, 8),
            shape=(1, 1, 8),
            mesh=make_mesh(data=1),
            area=(0.3, 1.0),
            sizes=CropSizes((7,)),
            total_steps=5,
            workers=0,
        )
        return [piece for number in range(5) for piece in loader.pieces[number][:2]]

    for one, other in zip(pieces(passed), pieces(of_folder), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_fingerprint_of_streamed_examples_changes_with_each_pixel_label_and_position():
    def fingerprint(images, labels=LABELS):
        data = {"train": list(zip(images, labels, strict=True))}
        return _load(data, channels=3, streamed=["train"]).fingerprint

    changed, other = PIXELS.copy(), LABELS.copy()
    changed[29, 5, 4, 2] ^= 1
    other[0] = 1
    order = np.arange(30)[::-1]
    found = [
        fingerprint(PIXELS),
        fingerprint(changed),
        fingerprint(PIXELS, other),
        fingerprint(PIXELS[order], LABELS[order]),
        fingerprint(PIXELS.transpose(0, 2, 1, 3)),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint(PIXELS.copy()) == found[0]


def test_a_source_is_called_by_a_thread_at_a_time_and_can_be_pickled():
    records = SourceRecords(Source(list(zip(PIXELS, LABELS, strict=True))))
    threads = [threading.Thread(target=lambda: list(records.fetch(range(30)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = pickle.loads(pickle.dumps(records))
    assert len(again) == 30
    assert again._source.most_calls == 1
    assert np.array_equal(next(again.fetch([7])).image, PIXELS[7])


def test_names_of_classes_may_include_some_without_examples():
    data = _load({"train": (PIXELS, LABELS)}, names=("cat", "dog", "owl", "yak"))
    assert data.class_names == ("cat", "dog", "owl", "yak")


def test_multispectral_images_stay_as_they_are():
    images = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 10), np.uint8)
    assert _load({"train": (images, LABELS[:6])}).image_shape == (8, 8, 10)


def test_damaged_examples_are_left_out_on_request():
    examples = [(encode(image), label) for image, label in zip(PIXELS, LABELS, strict=True)] * 40
    examples[7] = (examples[7][0][:40], 1)
    data = _load({"train": examples}, corrupt="skip")
    assert [(example.split, example.index) for example in data.skipped] == [("train", 7)]
    assert len(data.splits["train"]) == 1199
    with pytest.raises(DataError, match="example 7 of split 'train' of datasets can't be read"):
        _load({"train": examples})


class Broken(Source):
    def __getitem__(self, index):
        if index == 4:
            raise KeyError("img")
        return super().__getitem__(index)


class OnGpu:
    """Converts as a tensor of PyTorch in a GPU's memory does."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.\nUse Tensor.cpu()")


PAIRS = list(zip(PIXELS, LABELS, strict=True))
MISTAKES = {
    "floats": ((PIXELS / 255, LABELS), "are float64 .*must be uint8, grey levels 0 to 255"),
    "channels first": (
        (PIXELS.transpose(0, 3, 1, 2), LABELS),
        r"channels first; pass images.transpose\(0, 2, 3, 1\)",
    ),
    "one image": ((PIXELS[0, 0], LABELS), r"uint8 \[5, 3\]; they must be \[n, h, w, c\]"),
    "no images": ((PIXELS[:0], LABELS[:0]), r"must be \[n, h, w, c\]"),
    "sizes": (([PIXELS[0], PIXELS[1][:4]], LABELS[:2]), "differ in shape; pass list"),
    "a tensor on a GPU": (
        (OnGpu(), LABELS),
        r"^the images of 'train' can't be converted to an array \(can't .* to numpy\.\)\.$",
    ),
    "ragged labels": ((PIXELS, [[0], [1, 2]] * 15), "the labels of 'train' differ in shape"),
    "one-hot labels": ((PIXELS, np.eye(3)[LABELS]), r"float64 \[30, 3\]; they must be integers"),
    "float labels": ((PIXELS, LABELS * 1.0), r"float64 \[30\]; they must be integers"),
    "fewer labels": ((PIXELS, LABELS[:7]), "'train' has 30 images and 7 labels"),
    "huge labels": ((PIXELS, LABELS + 2**40), "labels of 'train' go from"),
    "a gap": ((PIXELS, LABELS * 2), "go up to 4, and no example has the label 1"),
    "from one": ((PIXELS, LABELS + 1), "go up to 3, and no example has the label 0"),
    "unlabelled": ((PIXELS, LABELS - 1), "example 0 of split 'train' .*-1 marks an unlabelled"),
    "three arrays": ((PIXELS, LABELS, LABELS), "is a tuple of 3, not of 2 arrays"),
    "a dictionary": ({"image": PIXELS, "label": LABELS}, "is of type dict; it is"),
    "a number": (3, "is of type int; it is"),
    "nothing": ([], "has no examples"),
    "images alone": (list(PIXELS), "it is of type ndarray; an example is"),
    "other keys": ([{"img": PIXELS[0], "label": 0}], "type dict with 'img', 'label'; an example"),
    "text labels": ([(PIXELS[0], "cat")], "its label is 'cat', not an integer"),
    "broken": (Broken(PAIRS), "example 4 of split 'train' .*KeyError: 'img'"),
    "float images": ([(PIXELS[0] / 255, 0)], "example 0 .*of type float64, not uint8"),
    "rows": ([(PIXELS[0, 0, 0], 0)], r"its image has the shape \[3\]"),
    "16 bits": (
        [(Image.fromarray(PIXELS[0, ..., 0].astype(np.uint16)), 0)],
        "it is a Pillow image of mode I;16, not of 8 bits per channel",
    ),
    "a tensor": (
        [(PIXELS[0].transpose(2, 0, 1), 0)],
        r"its image is \[3, 6, 5\], channels first; return image.transpose\(1, 2, 0\)",
    ),
    "colours after grey ones": (
        [(Image.fromarray(PIXELS[0, ..., 0]), 0)] * 8 + [(Image.fromarray(PIXELS[0]), 0)],
        "it is a Pillow image of mode RGB, and the first images are grey",
    ),
    "no image": ([(b"no image", 0)], "example 0 of split 'train' of datasets can't be read"),
}


def test_pillows_images_have_the_colours_of_all():
    """As in sets of photographs, of which some are grey or have an opacity."""
    image = Image.fromarray(PIXELS[0])
    modes = ("L", "RGB", "RGBA", "1", "P")
    source = [(image.convert(mode), 0) for mode in modes]
    for images in (source, source[::-1]):
        found = _load({"train": images}).splits["train"].images
        assert found.shape == (5, 6, 5, 3)
        for pixels, (original, _) in zip(found, images, strict=True):
            np.testing.assert_array_equal(pixels, np.asarray(original.convert("RGB")))
    grey = _load({"train": [(image.convert(mode), 0) for mode in ("L", "LA", "L")]})
    assert grey.image_shape == (6, 5, 3)  # as an array of LA would have
    assert _load({"train": [(image.convert("L"), 0)] * 2}).image_shape == (6, 5, 1)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name):
    examples, message = MISTAKES[name]
    with pytest.raises(DataError, match=message) as caught:
        _load({"train": examples})
    assert "\n" not in str(caught.value)


def test_images_must_have_one_size_or_be_scaled():
    smaller = [*PAIRS, (PIXELS[0][:4], 0)]
    with pytest.raises(ConfigError, match="it is 4×5 .*not 6×5 as the first image; set data.image"):
        _load({"train": smaller})
    assert _load({"train": smaller}, crop=ScaleAndCrop.square(4, resize=4)).image_shape == (4, 4, 3)
    with pytest.raises(DataError, match="'test' are 4×5 with 3 channels, those of 'train' 6×5"):
        _load({"train": PAIRS, "test": (PIXELS[:, :4], LABELS)})


def test_what_scaling_and_random_crops_need_is_said():
    grey, many = (PIXELS[..., 0], LABELS), (PIXELS.repeat(2, axis=-1), LABELS)
    with pytest.raises(
        ConfigError, match="for RGB images; those of 'train' are 6×5 with 1 channel."
    ):
        _load({"train": grey}, channels=3, streamed=["train"])
    with pytest.raises(ConfigError, match="6×5 with 6 channels, and data.image_size scales"):
        _load({"train": many}, crop=ScaleAndCrop.square(4, resize=4))


def test_a_label_that_only_the_test_split_has_needs_names():
    with pytest.raises(DataError, match="example 0 of split 'test' of 'arrays' has label 3"):
        _load({"train": PAIRS, "test": (PIXELS, LABELS + 3)}, names=("a", "b", "c"))


@pytest.mark.parametrize(
    ("splits", "names", "message"),
    [
        ([(PIXELS, LABELS)], (), "datasets is no mapping; it is a dict such as"),
        ({}, (), "datasets is empty"),
        ({"train set": PAIRS}, (), "datasets has the split 'train set'"),
        ({"train": PAIRS}, ("a", "a", "b"), "same name twice"),
        ({"train": PAIRS}, ("a", 3), "class_names has 3, which isn't a line of text"),
    ],
)
def test_what_is_passed_must_be_named_splits(splits, names, message):
    with pytest.raises(UsageError, match=message):
        PythonData(splits, names)


def test_the_name_alone_says_how_to_pass_data():
    with pytest.raises(ConfigError, match=r"resnet_jax.fit\(config, workdir, datasets=") as caught:
        load_dataset("arrays", splits={"train": "train"})
    assert "restore_run(workdir).evaluate('test', datasets=" in str(caught.value)
