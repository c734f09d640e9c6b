"""The fingerprint that the processes of a job compare before they train together."""

from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config.schema import flatten
from resnet_jax.logging.provenance import code_digest, package_versions

_PER_HOST = ("data.dir",)
"""Fields that may differ from host to host."""


def job_fingerprint(
    config: ConfigDict, *, stop_at_step: int | None, profile: tuple[int, int] | None
) -> dict[str, Any]:
    """Return by name the config, the library versions, and a digest of this package's code."""
    found = {name: value for name, value in flatten(config).items() if name not in _PER_HOST}
    found |= {f"the version of {name}": version for name, version in package_versions().items()}
    flags = {"stop_at_step": stop_at_step, "profile": list(profile) if profile else None}
    return found | flags | {"the code of resnet_jax": code_digest()}
