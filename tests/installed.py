"""A first hour with an installed package, run outside a checkout: python installed.py FOLDER

Nothing of it may come from a checkout; FOLDER gets a run.
"""

import sys
from importlib import metadata
from pathlib import Path

import numpy as np

import resnet_jax
from resnet_jax.ops.native.library import SOURCES


def main(folder: Path) -> None:
    """Train, stop, go on, restore, predict, with weights of the package too."""
    home = Path(resnet_jax.__file__).parent
    assert Path(sys.prefix) in home.parents, f"{home} isn't installed in {sys.prefix}"
    assert metadata.version("resnet-linen") == resnet_jax.__version__
    assert (home / "py.typed").exists()
    assert all(source.exists() for source in SOURCES)

    config = resnet_jax.default_config()
    config.model.stage_sizes, config.model.width = (1, 1, 1), 4
    config.data.validation, config.data.train = "train[90%:]", "train[:90%]"
    config.duration = 1.0
    stopped = resnet_jax.fit(config, folder / "run", stop_at_step=3)
    assert stopped.stopped_early
    result = resnet_jax.fit(config, folder / "run")
    assert result.evaluation["test"].examples == 360
    network = resnet_jax.restore_run(folder / "run")
    assert network.predict([np.zeros((8, 8, 1), np.uint8)]).shape == (1, 10)

    published = resnet_jax.pretrained("resnet20.digits")
    assert published.predict([np.zeros((8, 8, 1), np.uint8)]).shape == (1, 10)
    sys.stdout.write(f"installed and trained: {home}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
