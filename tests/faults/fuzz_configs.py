"""Configs: mutated JSON texts, documents and single fields."""

import json
import random
from pathlib import Path

from resnet_jax.config.io import describe_differences, from_json, to_json
from resnet_jax.config.schema import default_config, flatten, set_field, validate
from tests.faults import mutate


def main(record: mutate.Record, cases: int, folder: Path) -> None:
    """Rebuild, set, validate; what is accepted must survive being written and read again."""
    text = to_json(default_config())
    names = [*flatten(default_config()), "model", "data", "", ".", "data.", "data.name.x", "modle"]
    for case in range(cases):
        rng = random.Random(f"config {case}")
        with record.case(case):
            kind = case % 4
            if kind == 0:
                config = from_json(mutate.raw(text.encode(), rng).decode(errors="replace"))
            elif kind == 1:
                config = from_json(json.dumps(mutate.document(json.loads(text), rng)))
            else:
                config = default_config()
                for _ in range(rng.randint(1, 3)):
                    chosen = mutate.value(rng)
                    if isinstance(chosen, list) and rng.random() < 0.5:
                        chosen = tuple(chosen)
                    set_field(config, rng.choice(names), chosen)
            validate(config)
            again = from_json(to_json(config))
            assert flatten(again) == flatten(config), [
                (n, v, flatten(again)[n])
                for n, v in flatten(config).items()
                if flatten(again)[n] != v
            ]
            describe_differences(text, to_json(config))
