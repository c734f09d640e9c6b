"""Read one image file in a process of its own, and say what came out and what it took.

python -m tests.data.read_hostile predict|prepared FILE
"""

import json
import sys
import time
import warnings
from pathlib import Path

from resnet_jax.data.images.image_files import decode_image
from resnet_jax.errors import DataError
from tests.data.hostile_images import read_image
from tests.faults.fuzz_weights import peak_mib


def main(door: str, path: Path) -> dict[str, object]:
    """The shape or the refusal, MiB more than before, CPU seconds, warnings."""
    before, begin = peak_mib(), time.process_time()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            if door == "predict":
                outcome = str(read_image(path).shape)
            else:
                outcome = str(decode_image(path.read_bytes(), (8, 8, 3)).shape)
        except DataError as error:
            outcome = str(error)
    return {
        "outcome": outcome,
        "mib": peak_mib() - before,
        "cpu_s": time.process_time() - begin,
        "warnings": [str(one.message) for one in heard],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps([main(sys.argv[1], Path(name)) for name in sys.argv[2:]]))
