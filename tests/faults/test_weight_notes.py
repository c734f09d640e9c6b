"""Hostile notes on the network in a weight file's metadata: one line each."""

import json

import jax
import pytest

import resnet_jax
from resnet_jax.errors import DataError
from resnet_jax.weights.files import read_weights, write_weights

FIELDS = {"stage_sizes": (1, 2), "num_classes": 5, "width": 8}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A network and the arrays of its file."""
    file = tmp_path_factory.mktemp("sound") / "w.safetensors"
    model = resnet_jax.ResNet(**FIELDS)
    variables = resnet_jax.init_variables(model, jax.random.key(0), (32, 32, 3))
    resnet_jax.save_weights(file, model, variables)
    return model, read_weights(file)


def _note(**changes):
    return json.dumps({"class": "ResNet", "fields": FIELDS | changes})


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("9" * 9999, "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"class": "ResNet"}', "is damaged"),
        ('{"class": "ResNet", "fields": []}', "is damaged"),
        ('{"class": "ResNet", "class": "ResNet", "fields": {}}', "is damaged"),
        (json.dumps({"class": "os.system", "fields": {}}), "the class 'os.system'"),
        (json.dumps({"class": ["ResNet"], "fields": FIELDS}), "the class ['ResNet']"),
        (json.dumps({"class": "\x1b[31m" * 99, "fields": {}}), "of a model of the class"),
        (_note(new_field=1), "a field 'new_field', which this version of resnet_jax doesn't know"),
        (_note(dtype="float16"), "a field 'dtype'"),
        (_note(parent="x"), "a field 'parent'"),
        (_note(shortcut_scale=float("nan")), "is damaged"),
        (_note(shortcut_scale=float("inf")), "is damaged"),
        (_note(dropout=10**400), "it must be a finite number"),
        (_note(norm_epsilon=1).replace("1}", "1e400}"), "it must be a finite number"),
        (_note(width="8"), "model.width is '8'; it takes integers"),
        (_note(width=True), "model.width is True"),
        (_note(stage_sizes=None), "is damaged"),
        (_note(stage_sizes={"a": 1}), "is damaged"),
        (_note(stage_sizes=[]), "model.stage_sizes is ()"),
        (_note(stage_sizes=[[1]]), "it takes integers from 1 up"),
        (_note(stage_sizes=[1] * 99_999), "is damaged"),
        (_note(stage_sizes=[10**9]), "larger than the file"),
        (_note(shortcut="A", stem_width=16, width=8), "model.stem_width is 16, more than the 8"),
        (_note(stage_sizes=[10**4000]), "larger than the file"),
        (_note(width=10**9), "larger than the file"),
        (_note(width=16, stage_sizes=[1] * 16), "larger than the file"),
        (_note(num_classes=10**12), "larger than the file"),
        (_note(branch="bottleneck", groups=10**6), "larger than the file"),
        (_note(stem="deep", deep_stem_widths=[10**6, 8]), "larger than the file"),
        (_note(merge="coupled_gates", gate_kernel_size=10**6 + 1), "larger than the file"),
        (_note(shortcut="E" * 10**5), "model.shortcut is 'EEE"),
        (_note(shortcut=["A"]), "model.shortcut is"),
        (_note(norm="fixup", shortcut="none"), "model.norm is 'fixup'"),
    ],
)
def test_hostile_notes_are_one_line(note, message, sound, tmp_path):
    model, arrays = sound
    file = tmp_path / "w.safetensors"
    write_weights(file, arrays, metadata={"resnet_jax.model": note})
    for read in (resnet_jax.read_model, lambda file: resnet_jax.load_weights(model, file)):
        with pytest.raises(DataError) as refused:
            read(file)
        text = str(refused.value)
        assert message in text
        assert text.isprintable()
        assert len(text) < 1000
