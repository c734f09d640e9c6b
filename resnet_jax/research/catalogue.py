"""All reproductions by name."""

from resnet_jax.research.papers import (
    balduzzi2017,
    goyal2017,
    gradient_profile,
    he2015_fig6,
    he2015_fig7,
    he2015_table1,
    he2015_table6,
    he2016_table1,
    he2016_table2,
    huang2016,
    li2018,
    srivastava2015,
    srivastava2015_gates,
    veit2016_lesion,
    veit2016_paths,
    zagoruyko2016,
)
from resnet_jax.research.reproduction import Reproduction

REPRODUCTIONS: dict[str, Reproduction] = {
    paper.REPRODUCTION.name: paper.REPRODUCTION
    for paper in (
        srivastava2015_gates,
        srivastava2015,
        he2015_table1,
        he2015_fig6,
        he2015_table6,
        he2015_fig7,
        gradient_profile,
        he2016_table1,
        he2016_table2,
        huang2016,
        veit2016_lesion,
        veit2016_paths,
        zagoruyko2016,
        balduzzi2017,
        goyal2017,
        li2018,
    )
}
"""In the order of the papers."""
