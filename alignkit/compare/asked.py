"""What shall be compared: what a command says, else what the recipe's `[compare]` says."""

from dataclasses import replace

from alignkit.compare.variants import VariantRequest
from alignkit.recipe.recipe import Recipe
from alignkit.recipe.self_checks import flat


def asked_of(recipe: Recipe, asked: VariantRequest) -> VariantRequest:
    """Return what is asked for, with what the recipe says where the command says nothing of it.

    A command that names a stage, methods or values compares those alone; the number of seeds is the recipe's still.
    """
    table = recipe.checks.compare
    if table is None:
        return asked
    seeds = table.seeds if asked.seeds is None else asked.seeds
    asked = replace(asked, seeds=seeds, rewards=asked.rewards or table.rewards)
    if asked.methods or asked.vary or asked.stage not in (None, table.stage):
        return asked
    vary = {".".join(keys): (keys, values) for keys, values in flat(table.vary)}
    named = {name: {".".join(keys): (keys, value) for keys, value in flat(one)} for name, one in table.variants.items()}
    places = {key: recipe.where("compare", key) for key in ("stage", "methods")}
    places |= {f"vary {key}": recipe.where("compare", "vary", *keys) for key, (keys, _) in vary.items()}
    for name, changes in named.items():
        places[f"named {name}"] = recipe.where("compare", "variants", name)
        for key, (keys, _) in changes.items():
            places[f"named {name} {key}"] = recipe.where("compare", "variants", name, *keys)
    return replace(
        asked,
        stage=table.stage,
        methods=table.methods,
        vary={key: values for key, (_, values) in vary.items()},
        named={name: {key: value for key, (_, value) in changes.items()} for name, changes in named.items()},
        places={**places, **asked.places},
    )
