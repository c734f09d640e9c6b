"""What the processes of a job must have in common before they train together."""

import hashlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import resnet_jax
from resnet_jax.config.schema import flatten
from resnet_jax.logging.report import package_versions

_OWN = ("data.dir",)
"""Fields that may differ from host to host."""


def job_fingerprint(config: ConfigDict, *, stop_at_step: int | None) -> dict[str, Any]:
    """By name: the config, the versions of the libraries, and the code of this package."""
    ground = {name: value for name, value in flatten(config).items() if name not in _OWN}
    ground |= {f"the version of {name}": version for name, version in package_versions().items()}
    return ground | {"stop_at_step": stop_at_step, "the code of resnet_jax": _code_digest()}


def _code_digest() -> str:
    """Digest of all modules of the package, which a version number alone doesn't tell apart."""
    folder = Path(resnet_jax.__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
