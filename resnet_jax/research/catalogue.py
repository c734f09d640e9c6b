"""All artefacts by name."""

from resnet_jax.research.artefact import Artefact
from resnet_jax.research.papers import he2015_table1

ARTEFACTS: dict[str, Artefact] = {artefact.name: artefact for artefact in (he2015_table1.ARTEFACT,)}
"""In the order of the papers."""
