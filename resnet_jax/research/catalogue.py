"""All artefacts by name."""

from resnet_jax.research.artefact import Artefact
from resnet_jax.research.papers import gradient_profile, he2015_fig6, he2015_table1

ARTEFACTS: dict[str, Artefact] = {
    paper.ARTEFACT.name: paper.ARTEFACT
    for paper in (
        he2015_table1,
        he2015_fig6,
        gradient_profile,
    )
}
"""In the order of the papers."""
