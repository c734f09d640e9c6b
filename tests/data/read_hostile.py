"""Reads image files in a separate process, and reports the results and their cost.

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


def main(reader: str, path: Path) -> dict[str, object]:
    """Return shape or error, additional peak memory in MiB, CPU seconds, and warnings."""
    before, begin = peak_mib(), time.process_time()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            if reader == "predict":
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
