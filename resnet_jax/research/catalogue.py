"""All artefacts by name."""

from resnet_jax.research.artefact import Artefact
from resnet_jax.research.papers import (
    gradient_profile,
    he2015_fig6,
    he2015_fig7,
    he2015_table1,
    veit2016_lesion,
)

ARTEFACTS: dict[str, Artefact] = {
    paper.ARTEFACT.name: paper.ARTEFACT
    for paper in (
        he2015_table1,
        he2015_fig6,
        he2015_fig7,
        gradient_profile,
        veit2016_lesion,
    )
}
"""In the order of the papers."""
