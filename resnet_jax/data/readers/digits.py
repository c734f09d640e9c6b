"""scikit-learn's handwritten digits."""

import functools
import importlib.util
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np

from resnet_jax.data.readers.source import DecodedSplit
from resnet_jax.errors import ConfigError, DataError

DIGITS_TEST_EXAMPLES = 360
# Indices of all digits, the training examples first, as scikit-learn's `train_test_split`
# stratifies and shuffles them with `random_state=2015`.
_ORDER = Path(__file__).with_name("digits_order.npy")


class Digits:
    """1,797 handwritten digits, 8×8 grey, in a fixed stratified split; see `Source`."""

    image_shape = (8, 8, 1)
    class_names = tuple("0123456789")

    @functools.cached_property
    def _splits(self) -> dict[str, DecodedSplit]:
        # Read from the file: importing `sklearn.datasets` takes a second.
        package = importlib.util.find_spec("sklearn")
        if package is None or not package.submodule_search_locations:
            raise DataError("digits come with scikit-learn; pip install scikit-learn")
        file = Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
        try:
            rows = np.loadtxt(file, delimiter=",", dtype=np.float64)
        except (OSError, ValueError, EOFError, zlib.error) as error:
            raise DataError(f"{file} is missing or damaged; reinstall scikit-learn") from error
        images = np.round(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        labels = rows[:, -1].astype(np.int32)
        train, test = np.split(np.load(_ORDER), [-DIGITS_TEST_EXAMPLES])
        return {
            "train": DecodedSplit(images[train], labels[train]),
            "test": DecodedSplit(images[test], labels[test]),
        }

    @property
    def lengths(self) -> dict[str, int]:
        """1,437 training and 360 test examples."""
        return {split: len(decoded.labels) for split, decoded in self._splits.items()}

    def read(self, split: str, *, skip_corrupt: bool = False) -> DecodedSplit:
        """Return a split; `skip_corrupt` has no effect, as no example is damaged."""
        del skip_corrupt
        return self._splits[split]

    def records(self, split: str) -> NoReturn:
        """Raise ConfigError: digits have no encoded examples."""
        raise ConfigError("digits are arrays in memory; data.random_crop_area isn't for digits.")

    def fingerprint(self, split: str) -> NoReturn:
        """Raise ConfigError: digits have no encoded examples."""
        self.records(split)
