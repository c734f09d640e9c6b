"""The table of docs/recipes.md, from the published recipes."""

from table_text import markdown

from resnet_jax.config.recipes import RECIPES, make


def recipes_table() -> str:
    """Every recipe: what it is for, how it trains, what its authors report."""
    rows = []
    for name, recipe in RECIPES.items():
        config = make(name, data=recipe.data)
        rows.append(
            (
                *(f"`{name}`", recipe.data, f"{config.duration:g}", f"{config.batch_size:,}"),
                *(config.optimizer.name, recipe.published, recipe.source),
            )
        )
    headings = ("epochs", "batch", "optimiser", "published top-1", "source")
    return markdown(("recipe", "for", *headings), rows)


TABLES = {"recipes": ("docs/recipes.md", recipes_table)}
