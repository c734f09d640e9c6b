"""resnet-jax convert: refusals without PyTorch; with it, what comes out and what is never run."""

import argparse
import collections
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from resnet_jax.cli import convert
from resnet_jax.cli.main import main
from resnet_jax.weights.files import read_metadata, read_weights, write_weights
from tests.cli.mistakes import assert_one_line


class _Payload:
    """A pickle of it makes a folder when it's read."""

    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def _pickle(path) -> str:
    path.write_bytes(pickle.dumps({"w": _Payload(path.parent / "marker")}))
    return str(path)


# Without PyTorch


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "resnet-jax convert needs PyTorch: pip install 'torch>=2.10'"),
        ("2.5.1", "torch 2.5.1 is installed, in which loading weights is unsafe"),
        ("2.9.1+cu128", "torch 2.9.1+cu128 is installed, in which loading weights is unsafe"),
    ],
)
def test_a_missing_or_unsafe_torch_is_refused(version, message, tmp_path, monkeypatch, capsys):
    for folder in ["none"] if version is None else ["torch"]:
        (tmp_path / f"{folder}-{version}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {folder}\nVersion: {version}\n"
        (tmp_path / f"{folder}-{version}.dist-info" / "METADATA").write_text(metadata)
    import packaging.version  # noqa: F401 - what convert imports, before its path is gone

    monkeypatch.setattr("sys.path", [str(tmp_path)])
    source = _pickle(tmp_path / "model.pth")
    assert_one_line(["convert", source, str(tmp_path / "o.safetensors")], 78, message, capsys)
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "o.safetensors").exists()


def test_mistakes_are_one_line(tmp_path, capsys):
    source = _pickle(tmp_path / "model.pth")
    write_weights(tmp_path / "w.safetensors", {"w": np.ones(3)})
    np.savez(tmp_path / "w.npz", w=np.ones(3))
    (tmp_path / "half.pth").write_bytes((tmp_path / "w.npz").read_bytes()[:100])
    target = str(tmp_path / "out.safetensors")
    for arguments, code, message in (
        ([source], 64, "OUT.safetensors"),
        ([source, str(tmp_path / "other.pth")], 64, "doesn't end in .safetensors"),
        ([str(tmp_path / "w.safetensors")] * 2, 64, "choose another OUT"),
        ([source, str(tmp_path / "none" / "out.safetensors")], 73, "folder doesn't exist"),
        ([str(tmp_path / "none.pth"), target], 65, "none.pth can't be read: No such file"),
        ([str(tmp_path / "w.safetensors"), target], 65, "there is nothing to convert"),
        ([str(tmp_path / "w.npz"), target], 65, "there is nothing to convert"),
        ([str(tmp_path / "half.pth"), target], 65, "half.pth isn't a sound zip archive"),
        ([str(tmp_path), target], 65, "Is a directory"),
    ):
        assert_one_line(["convert", *arguments], code, message, capsys)
    assert not (tmp_path / "marker").exists()
    assert sorted(os.listdir(tmp_path)) == ["half.pth", "model.pth", "w.npz", "w.safetensors"]


# With PyTorch


@pytest.fixture
def torch():
    return pytest.importorskip(
        "torch", "2.10", reason="needs PyTorch, at least 2.10 (the extra [convert])"
    )


@pytest.fixture
def state_dict(torch):
    """Every type, a scalar, an empty and a transposed tensor, and two that share memory."""
    types = ("float64", "float32", "float16", "bfloat16", "bool", "int64", "int32", "int16")
    types += ("int8", "uint8")
    tensors = {f"types.{t}": torch.arange(-3, 3).to(getattr(torch, t)) for t in types}
    tensors["transposed"] = torch.randn(3, 4).T
    tensors["view"] = tensors["transposed"][1]
    tensors["scalar"] = torch.tensor(7)
    tensors["empty"] = torch.zeros(0, 3)
    tensors["parameter"] = torch.nn.Parameter(torch.randn(2))
    return collections.OrderedDict(tensors)


def _run(capsys, *arguments) -> dict[str, object]:
    assert main(["convert", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _assert_equal(found, tensors, torch) -> None:
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].shape == tuple(tensor.shape), name
        assert str(found[name].dtype) == str(tensor.dtype).removeprefix("torch."), name
        wide = torch.float64 if tensor.is_floating_point() else torch.int64
        expected = tensor.detach().to(wide).numpy()
        np.testing.assert_array_equal(found[name].astype(expected.dtype), expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_out_as_they_are(zipped, torch, state_dict, tmp_path, capsys):
    source, target = tmp_path / "model.pth", tmp_path / "model.safetensors"
    torch.save(state_dict, source, _use_new_zipfile_serialization=zipped)
    document = _run(capsys, source, target)
    _assert_equal(read_weights(target), state_dict, torch)
    assert document["tensors"] == len(state_dict)
    assert document["elements"] == sum(tensor.numel() for tensor in state_dict.values())
    assert document["key"] is None
    assert read_metadata(target) == {"converted_from": "model.pth", "sha256": document["sha256"]}
    assert sorted(os.listdir(tmp_path)) == ["model.pth", "model.safetensors"]
    first = target.read_bytes()
    assert main(["convert", str(source), str(target)]) == 0
    assert capsys.readouterr().out.startswith(f"{target}: {len(state_dict)} tensors (")
    assert target.read_bytes() == first


def test_a_training_checkpoint_is_unwrapped(torch, state_dict, tmp_path, capsys):
    source, target = tmp_path / "model.pth.tar", tmp_path / "model.safetensors"
    averages = {
        name: tensor[..., :0] if tensor.dim() else tensor for name, tensor in state_dict.items()
    }
    beside = {"epoch": 3, "best": torch.tensor(1.0), "optimizer": {"state": {0: 1}}}
    torch.save({"state_dict": state_dict, "state_dict_ema": averages, **beside}, source)
    document = _run(capsys, source, target)
    assert document["key"] == "state_dict"
    assert document["left_out"] == ["best", "epoch", "optimizer", "state_dict_ema"]
    _assert_equal(read_weights(target), state_dict, torch)
    document = _run(capsys, source, target, "--key", "state_dict_ema")
    assert document["key"] == "state_dict_ema"
    _assert_equal(read_weights(target), averages, torch)
    message = "no tensors under 'ema'; there are: optimizer, state_dict, state_dict_ema"
    assert_one_line(["convert", str(source), str(target), "--key=ema"], 65, message, capsys)


def _contents(torch, marker) -> dict[str, tuple[object, str]]:
    ones = torch.ones(3)
    return {
        "payload": ({"w": _Payload(marker)}, "refers to posix.mkdir, and is more than tensors"),
        "module": (torch.nn.Linear(2, 2), "refers to torch.nn.modules.linear.Linear"),
        "namespace": (
            {"state_dict": {"w": ones}, "args": argparse.Namespace()},
            "refers to argparse.Namespace",
        ),
        "list": ([ones], "holds a list, not tensors by name"),
        "number": ({"w": ones, "epoch": 3}, "has a int under 'epoch', not a tensor"),
        "several": ({"a": {"w": ones}, "b": {"w": ones}}, "choose one by --key: a, b"),
        "names": ({1: ones}, "the name 1 of type int"),
        "line break": ({"a\nb": ones}, r"the array name 'a\nb'"),
        "complex": ({"w": ones.to(torch.complex64)}, "'w' of type complex64"),
        "sparse": ({"w": ones.to_sparse()}, "torch.sparse_coo"),
        "4 TB in 4 bytes": ({"w": ones[:1].expand(2**40)}, "holds tensors of 4,398,046,511,104"),
        "16 GB in 4 bytes": ({"w": ones[:1].expand(2**32 - 5)}, "needs more memory"),
    }


_CONTENTS = (
    *("payload", "module", "namespace", "list", "number", "several", "names", "line break"),
    *("complex", "sparse", "4 TB in 4 bytes", "16 GB in 4 bytes"),
)


@pytest.mark.parametrize("content", _CONTENTS)
def test_what_is_not_tensors_by_name_is_refused(content, torch, tmp_path, capsys):
    saved, message = _contents(torch, tmp_path / "marker")[content]
    torch.save(saved, tmp_path / "model.pth")
    arguments = ["convert", str(tmp_path / "model.pth"), str(tmp_path / "out.safetensors")]
    assert_one_line(arguments, 65, message, capsys)
    assert os.listdir(tmp_path) == ["model.pth"]


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_is_not_run(protocol, torch, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    payload = {"w": _Payload(tmp_path / "marker")}
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(payload, protocol))
    arguments = ["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "out.safetensors")]
    assert_one_line(arguments, 65, "w.safetensors ", capsys)
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_a_script_and_a_damaged_file_are_refused(torch, state_dict, tmp_path, capsys):
    torch.save(state_dict, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "old.pth").write_bytes((tmp_path / "old.pth").read_bytes()[:-30])
    target = str(tmp_path / "out.safetensors")
    assert_one_line(["convert", str(tmp_path / "old.pth"), target], 65, "can't be loaded", capsys)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert_one_line(["convert", str(tmp_path / "script.pt"), target], 65, "TorchScript", capsys)
    assert sorted(os.listdir(tmp_path)) == ["old.pth", "script.pt"]


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("_LEAST_CPU_S", 0, "it was given up"),
        ("_LEAST_CPU_S", 1, "takes more than 1 s of a processor"),
        ("_LEAST_MEMORY", 2**28, "can't be converted"),
    ],
)
def test_a_process_at_its_limits_is_one_line(
    limit, value, message, torch, state_dict, tmp_path, capsys, monkeypatch
):
    torch.save(state_dict, tmp_path / "model.pth")
    monkeypatch.setattr(convert, limit, value)
    arguments = ["convert", str(tmp_path / "model.pth"), str(tmp_path / "out.safetensors")]
    assert_one_line(arguments, 65, message, capsys)
    assert os.listdir(tmp_path) == ["model.pth"]


def test_torch_is_imported_by_the_child_alone(torch, state_dict, tmp_path):
    torch.save(state_dict, tmp_path / "model.pth")
    code = (
        "import sys; from resnet_jax.cli.main import main\n"
        "assert main(['convert', *sys.argv[1:]]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    arguments = (tmp_path / "model.pth", tmp_path / "model.safetensors")
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
