"""The names of Triton's language that emitted text may use, as data, and the check that it uses no others.

Listed is what Triton 3.0 documents (https://triton-lang.org/main/python-api/triton.language.html as of that
release), since forks are based on it; names that came later, and those some forks leave out, stand with the
capability that a target needs. `violations` walks a text; tests hold every emitted text against it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

from infini.compiler.triton.target import Capability, Target

# Functions, with the keyword arguments that may be given by name.
FUNCTIONS: Final[dict[str, frozenset[str]]] = {
    name: frozenset(keywords.split())
    for name, keywords in {
        # programs
        "program_id": "axis", "num_programs": "axis",
        # creation
        "arange": "", "cat": "can_reorder", "full": "", "zeros": "", "zeros_like": "", "cast": "bitcast",
        # shapes
        "broadcast": "", "broadcast_to": "", "expand_dims": "", "interleave": "", "join": "", "permute": "",
        "ravel": "", "reshape": "", "split": "", "trans": "", "view": "",
        # products
        "dot": "acc input_precision max_num_imprecise_acc out_dtype",
        # memory
        "load": "mask other cache_modifier eviction_policy volatile",
        "store": "mask cache_modifier eviction_policy",
        # choice and order
        "flip": "", "where": "", "swizzle2d": "",
        # elementwise
        "abs": "", "cdiv": "", "ceil": "", "clamp": "propagate_nan", "cos": "", "div_rn": "", "erf": "",
        "exp": "",
        "exp2": "", "fdiv": "ieee_rounding", "floor": "", "fma": "", "log": "", "log2": "",
        "maximum": "propagate_nan", "minimum": "propagate_nan", "rsqrt": "", "sigmoid": "", "sin": "",
        "softmax": "",
        "sqrt": "", "sqrt_rn": "", "umulhi": "",
        # reductions
        "argmax": "axis tie_break_left", "argmin": "axis tie_break_left",
        "max": "axis keep_dims return_indices",
        "min": "axis keep_dims return_indices", "reduce": "axis combine_fn keep_dims", "sum": "axis",
        "xor_sum": "axis",
        # scans and sorting
        "associative_scan": "axis combine_fn reverse", "cumprod": "axis reverse", "cumsum": "axis reverse",
        "histogram": "", "sort": "",
        # atomics
        "atomic_add": "mask sem scope", "atomic_and": "mask sem scope", "atomic_cas": "sem scope",
        "atomic_max": "mask sem scope", "atomic_min": "mask sem scope", "atomic_or": "mask sem scope",
        "atomic_xchg": "mask sem scope", "atomic_xor": "mask sem scope",
        # random numbers
        "rand": "", "randint": "", "randint4x": "", "randn": "",
        # hints
        "debug_barrier": "", "max_constancy": "", "max_contiguous": "", "multiple_of": "",
        # loops
        "range": "num_stages", "static_range": "",
        # pointers
        "pointer_type": "",
        # newer than 3.0, or missing in forks
        "make_block_ptr": "", "advance": "", "make_tensor_descriptor": "", "load_tensor_descriptor": "",
        "store_tensor_descriptor": "", "gather": "axis", "dot_scaled": "", "inline_asm_elementwise": "",
    }.items()
}  # fmt: skip
CONSTANTS: Final = frozenset({
    "int1", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64", "float8e4nv", "float8e5", "constexpr", "PropagateNan",
})  # fmt: skip
# Names that not every target has.
NEEDS: Final[dict[str, Capability]] = {
    "float64": "float64",
    "int64": "int64",
    "uint64": "int64",
    "bfloat16": "bfloat16",
    "float8e4nv": "float8",
    "float8e5": "float8",
    "dot": "dot",
    "atomic_cas": "atomic_cas",
    "make_block_ptr": "block_pointers",
    "advance": "block_pointers",
    "make_tensor_descriptor": "tensor_descriptors",
    "load_tensor_descriptor": "tensor_descriptors",
    "store_tensor_descriptor": "tensor_descriptors",
    "gather": "gather",
    "dot_scaled": "scaled_dot",
    "inline_asm_elementwise": "inline_assembly",
}
# Types of elements in signatures that not every target has.
SIGNATURE_NEEDS: Final[dict[str, Capability]] = {
    "fp64": "float64", "i64": "int64", "u64": "int64", "bf16": "bfloat16"
}  # fmt: skip
# Methods of a tile, with their keyword arguments; and Python's own functions.
METHODS: Final = {"to": frozenset({"bitcast"})}
BUILTINS: Final = frozenset({"range", "float"})
_STATEMENTS: Final = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Import, ast.alias, ast.Assign,
    ast.AnnAssign, ast.AugAssign, ast.For,
    ast.While, ast.If, ast.Return, ast.Expr,
)  # fmt: skip
_EXPRESSIONS: Final = (
    ast.Name, ast.Attribute, ast.Call, ast.keyword, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.expr_context, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip


def capabilities(names: Iterator[str]) -> frozenset[Capability]:
    """What a target needs for some names of the language."""
    return frozenset(NEEDS[name] for name in names if name in NEEDS)


def violations(text: str, target: Target) -> list[str]:
    """Where a text uses what the language, or the target, does not have; one sentence each."""
    module = ast.parse(text)
    own = {node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}
    found = []
    for node in ast.walk(module):
        found += [f"line {getattr(node, 'lineno', 0)}: {what}" for what in _faults(node, own, target)]
    return found


def _faults(node: ast.AST, own: set[str], target: Target) -> Iterator[str]:
    if not isinstance(node, (*_STATEMENTS, *_EXPRESSIONS)):
        yield f"{type(node).__name__} is not part of the language"
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tl":
        if node.attr not in FUNCTIONS and node.attr not in CONSTANTS:
            yield f"tl.{node.attr} is not a name of Triton 3.0"
        elif node.attr in NEEDS and not target.has(NEEDS[node.attr]):
            yield f"tl.{node.attr} needs the capability {NEEDS[node.attr]}"
    if isinstance(node, ast.Attribute) and not _is_known_attribute(node):
        yield f".{node.attr} is no method of tiles"
    if isinstance(node, ast.Import) and {(a.name, a.asname) for a in node.names} - _IMPORTS:
        yield "only Triton is imported"
    if isinstance(node, ast.Call):
        yield from _call_faults(node, own)


_IMPORTS: Final = {("triton", None), ("triton.language", "tl")}


def _is_known_attribute(node: ast.Attribute) -> bool:
    owner = ast.unparse(node.value)
    if owner in ("tl", "triton"):
        return owner == "tl" or node.attr == "jit"
    return node.attr in METHODS or (owner == "tl.PropagateNan" and node.attr in ("ALL", "NONE"))


def _call_faults(node: ast.Call, own: set[str]) -> Iterator[str]:
    called, given = node.func, {keyword.arg for keyword in node.keywords}
    if isinstance(called, ast.Name):
        if called.id not in own | BUILTINS:
            yield f"{called.id}() is defined nowhere"
        return
    if isinstance(called, ast.Attribute):
        allowed = (
            FUNCTIONS.get(called.attr) if ast.unparse(called.value) == "tl" else METHODS.get(called.attr)
        )
        if allowed is not None and given - allowed:
            yield f"{called.attr}() has no argument {sorted(map(str, given - allowed))[0]}"
