"""The rules of torch's own operations, one file for each family."""

from metalearn.core.samples.layer_rules import register_layer_rule
from metalearn.core.samples.rules import (
    convolutions,
    elementwise,
    lookups,
    matrix_products,
    normalization,
)

__all__: list[str] = []

for family in (matrix_products, convolutions, lookups, normalization, elementwise):
    for operation, rule in family.RULES.items():
        register_layer_rule(operation, rule)
