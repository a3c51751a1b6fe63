"""The one program type: typed SSA with frozen attributes and the user's line on every equation.

    types        ArrayType and Var
    attributes   Attrs, and what an attribute may be
    constants    small data inside a program
    program      Equation and Program
    builder      the only way to make an equation

`Program(params, consts, equations, results)`; a `Var` is identity plus `ArrayType`, nothing else. Placement,
layout and donation are side tables made by passes. `python -m infini.core.ir FILE` looks at a program.
"""

from infini.core.ir.attributes import (
    NO_ATTRS as NO_ATTRS,
    Attrs as Attrs,
    HostFunction as HostFunction,
    attribute as attribute,
    attribute_class as attribute_class,
    freeze as freeze,
)
from infini.core.ir.builder import (
    Builder as Builder,
    infer_types as infer_types,
    inline as inline,
    single_equation as single_equation,
)
from infini.core.ir.constants import Constant as Constant
from infini.core.ir.program import (
    Equation as Equation,
    Program as Program,
    install_printer as install_printer,
    max_effect as max_effect,
    programs_of as programs_of,
)
from infini.core.ir.types import ArrayType as ArrayType, Shape as Shape, Var as Var
