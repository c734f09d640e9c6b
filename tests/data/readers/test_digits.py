"""scikit-learn's digits, and an installation without them."""

import gzip
from types import SimpleNamespace

import pytest

import resnet_jax
from resnet_jax.data.readers import digits
from resnet_jax.data.readers.digits import Digits
from resnet_jax.errors import DataError
from tests.conftest import make_tiny_config


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """Folder of the data files of a scikit-learn that has none."""
    folder = tmp_path / "sklearn" / "datasets" / "data"
    folder.mkdir(parents=True)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "sklearn")])
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: found)
    return folder


@pytest.mark.parametrize(
    "content",
    [None, b"no gzip", gzip.compress(b"1,2,x\n"), gzip.compress(b"1,2\n" * 99)[:-9]],
    ids=["missing", "no gzip", "no number", "truncated"],
)
def test_a_missing_or_damaged_file_is_named_with_what_to_do(installation, content):
    if content is not None:
        (installation / "digits.csv.gz").write_bytes(content)
    expected = r"sklearn/datasets/data/digits\.csv\.gz is missing or damaged; reinstall"
    with pytest.raises(DataError, match=expected):
        _ = Digits().lengths


def test_a_run_without_the_file_blames_the_data_not_its_directory(installation, tmp_path):
    with pytest.raises(DataError, match="reinstall scikit-learn"):
        resnet_jax.fit(make_tiny_config(), tmp_path / "run")
