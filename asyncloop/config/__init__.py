"""TOML → components: a strict config whose mistakes are found all at once, each with its place, before anything runs.

document    a file or a mapping, with what it extends           tree, problem   values and mistakes with their place
override    --set a.b=VALUE                                     reference       ${path.to.key}, ${env:NAME}
schema      [run] and [engine]                                  check           values against types
signature   what a constructor takes    importing  "module:Name"    components  [dataset], [model], [[hooks]]
load        all of it, in this order                            toml            writing
json_schema, json_component, json_types      the same as JSON Schema, for editors
syntax      tomllib's errors in words                           places          what is found wrong when it is built
"""

from asyncloop.config.components import Component
from asyncloop.config.importing import import_object
from asyncloop.config.load import Config, load_config, load_dataset
from asyncloop.config.problem import InvalidConfig, Origin, Problem
from asyncloop.config.schema import EngineSection, RunSection
from asyncloop.config.toml import dumps

__all__ = [
    "Component",
    "Config",
    "EngineSection",
    "InvalidConfig",
    "Origin",
    "Problem",
    "RunSection",
    "dumps",
    "import_object",
    "load_config",
    "load_dataset",
]
