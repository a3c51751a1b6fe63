"""Convolutions, with JAX's names and dimension numbers; the operation is `conv`."""

from infini.lax.convolution.dimension_numbers import (
    ConvDimensionNumbers as ConvDimensionNumbers,
    ConvGeneralDilatedDimensionNumbers as ConvGeneralDilatedDimensionNumbers,
    conv_dimension_numbers as conv_dimension_numbers,
    conv_general_permutations as conv_general_permutations,
)
from infini.lax.convolution.functions import (
    conv as conv,
    conv_general_dilated as conv_general_dilated,
    conv_with_general_padding as conv_with_general_padding,
)
from infini.lax.convolution.operation import conv_p as conv_p
from infini.lax.convolution.patches import (
    conv_general_dilated_local as conv_general_dilated_local,
    conv_general_dilated_patches as conv_general_dilated_patches,
)
from infini.lax.convolution.shapes import (
    conv_general_shape_tuple as conv_general_shape_tuple,
    conv_shape_tuple as conv_shape_tuple,
    conv_transpose_shape_tuple as conv_transpose_shape_tuple,
)
from infini.lax.convolution.transposed import conv_transpose as conv_transpose
