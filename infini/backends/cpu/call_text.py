"""The machine code of `call_path`, as LLVM IR: check arguments, fill the table, run, wrap the results.

It does what `Jitted.__call__`, `Runner.__call__` and `CpuExecutable.__call__` do for a signature that they
have seen, with functions of Python's C API where a reference is made or an object is born, and plain loads
of slots where one is only looked at. It runs with the interpreter lock held; long programs release it.

Everything it knows lies in memory that `call_path` writes, in words of 8 bytes:

- *head*, one per jitted function: how many signatures, the conditions they share, the signatures;
- *state*, one per signature: the program that checks the arguments, and what the executable needs;
- *checks*: a tree of arguments as words in preorder, a kind first (`LEAF`, `TUPLE`, ...).

Whatever does not match ends in `NotImplemented`, and the caller goes the way through Python, which knows
every case and gives the errors.
"""

from __future__ import annotations

import re
import string
from typing import Final

from infini.backends.cpu import call_checks, call_memory, call_running
from infini.compiler.llvm.target import Target

# Words of the head.
HEAD: Final = ("num_states", "num_conditions", "conditions", "frame_words", "facts", "states")
MAX_STATES: Final = 32
# Words of the facts: objects that every state compares with.
FACTS: Final = ("array", "buffer", "none", "not_implemented", "counts", "free_lists", "most_kept")
# Words of a state.
STATE: Final = (
    "num_inputs", "num_outputs", "entry", "mode", "pool", "wakes", "releases", "tail", "tail_start",
    "tail_count", "arena", "outputs", "sharding", "checks", "captures", "num_captures", "donated",
    "num_donated", "finish",
)  # fmt: skip
# Words of a record of an output, or of the arena.
OUTPUT: Final = ("alias", "size_object", "nbytes_object", "free_list", "size", "type", "weak", "committed")

# Kinds of checks, with the words that follow.
LEAF: Final = 0  # slot, type, dtype, shape, weak, committed, sharding, layout
TUPLE: Final = 1  # class, count
LIST: Final = 2  # class, count
DICT: Final = 3  # class, count, keys
SAME: Final = 4  # object
FIELDS: Final = 5  # class, count, names
EQUAL: Final = 6  # class, object: numbers and texts, whose comparison runs no code of the user
NUMBER: Final = 7  # class, slot, kind of `NUMBERS`
# Python numbers as arguments, and what they become: bool, int32, int64, float32, float64.
NUMBERS: Final = ("bool", "int32", "int64", "float32", "float64")
LEAF_WORDS: Final = 9

# How a program is entered.
SINGLE: Final = 0  # entry(table, null): one task
SERIAL: Final = 1  # entry(null, table)
POOLED: Final = 2  # between begin and end of the pool

# Slots of classes: %array, %buffer and %type are objects, their offsets are given.
SLOTS: Final = (
    "ARRAY_TYPE", "ARRAY_WEAK", "ARRAY_BUFFERS", "ARRAY_SHARDING", "ARRAY_COMMITTED", "ARRAY_READY",
    "ARRAY_ARRANGED",
    "ARRANGED_LAYOUT", "ARRANGED_BUFFERS",
    "BUFFER_BLOCK", "BUFFER_SIZE", "BUFFER_ADDRESS", "BUFFER_NBYTES",
    "TYPE_SHAPE", "TYPE_DTYPE",
)  # fmt: skip
API: Final = (
    "Py_IncRef", "Py_DecRef", "PyLong_AsLongLong", "PyDict_GetItemWithError", "PyDict_Size",
    "PyObject_RichCompareBool", "PyObject_GetAttr", "PyContextVar_Get", "PyList_Size", "PyList_GetItem",
    "PyList_SetSlice", "PyList_Append", "PyList_New", "PyList_SetItem", "PyTuple_New", "PyTuple_SetItem",
    "PyTuple_GetItem", "PyType_GenericAlloc", "PyObject_CallFunctionObjArgs", "PyEval_SaveThread",
    "PyEval_RestoreThread", "PyErr_Clear", "PyErr_Occurred", "PyLong_AsVoidPtr", "PyFloat_AsDouble",
    "PyDict_SetItem",
)  # fmt: skip

_DECLARES: Final = """
declare void @Py_IncRef(ptr)
declare void @Py_DecRef(ptr)
declare i64 @PyLong_AsLongLong(ptr)
declare ptr @PyLong_AsVoidPtr(ptr)
declare ptr @PyDict_GetItemWithError(ptr, ptr)
declare i64 @PyDict_Size(ptr)
declare i32 @PyObject_RichCompareBool(ptr, ptr, i32)
declare ptr @PyObject_GetAttr(ptr, ptr)
declare i32 @PyContextVar_Get(ptr, ptr, ptr)
declare i64 @PyList_Size(ptr)
declare ptr @PyList_GetItem(ptr, i64)
declare i32 @PyList_SetSlice(ptr, i64, i64, ptr)
declare i32 @PyList_Append(ptr, ptr)
declare ptr @PyList_New(i64)
declare i32 @PyList_SetItem(ptr, i64, ptr)
declare ptr @PyTuple_New(i64)
declare i32 @PyTuple_SetItem(ptr, i64, ptr)
declare ptr @PyTuple_GetItem(ptr, i64)
declare ptr @PyType_GenericAlloc(ptr, i64)
declare ptr @PyObject_CallFunctionObjArgs(ptr, ...)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare void @PyErr_Clear()
declare ptr @PyErr_Occurred()
declare double @PyFloat_AsDouble(ptr)
declare i32 @PyDict_SetItem(ptr, ptr, ptr)
declare void @infini_begin(ptr, i32)
declare void @infini_end(ptr)

; Write an object into an empty slot.
define internal void @fill(ptr %object, i64 %offset, ptr %value) nounwind {
  call void @Py_IncRef(ptr %value)
  %p = getelementptr i8, ptr %object, i64 %offset
  store ptr %value, ptr %p, align 8
  ret void
}
"""


_CALL: Final = """
; Whether every condition outside the arguments is as it was recorded: (context variable or null, object or
; attribute's owner, name) and what is expected.
define internal i1 @conditions_hold(ptr %head) nounwind {
entry:
  %value.p = alloca ptr, align 8
  %count = call i64 @integer(ptr %head, i64 $num_conditions)
  %list = call ptr @word(ptr %head, i64 $conditions)
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i.next, %same ]
  %done = icmp eq i64 %i, %count
  br i1 %done, label %yes, label %look
look:
  %at.n = mul i64 %i, 3
  %at = getelementptr i64, ptr %list, i64 %at.n
  %owner = call ptr @word(ptr %at, i64 0)
  %name = call ptr @word(ptr %at, i64 1)
  %expected = call ptr @word(ptr %at, i64 2)
  %is.variable = icmp eq ptr %name, null
  br i1 %is.variable, label %variable, label %attribute
variable:
  store ptr null, ptr %value.p, align 8
  %failed = call i32 @PyContextVar_Get(ptr %owner, ptr null, ptr %value.p)
  %variable.value = load ptr, ptr %value.p, align 8
  br label %compare
attribute:
  %attribute.value = call ptr @PyObject_GetAttr(ptr %owner, ptr %name)
  br label %compare
compare:
  %value = phi ptr [ %variable.value, %variable ], [ %attribute.value, %attribute ]
  %is.missing = icmp eq ptr %value, null
  br i1 %is.missing, label %no, label %held
held:
  call void @Py_DecRef(ptr %value)
  %is.same = icmp eq ptr %value, %expected
  br i1 %is.same, label %same, label %no
same:
  %i.next = add i64 %i, 1
  br label %loop
yes:
  ret i1 true
no:
  call void @PyErr_Clear()
  ret i1 false
}

; infini_call(address of the head, [args, kwargs], 2): results, NotImplemented, or null with an exception.
define ptr @infini_call(ptr %self, ptr %arguments, i64 %num_arguments) nounwind {
entry:
  %head = call ptr @PyLong_AsVoidPtr(ptr %self)
  %facts = call ptr @word(ptr %head, i64 $facts)
  %refused = call ptr @word(ptr %facts, i64 $not_implemented)
  %holds = call i1 @conditions_hold(ptr %head)
  br i1 %holds, label %start, label %refuse
start:
  %words = call i64 @integer(ptr %head, i64 $frame_words)
  %frame = alloca i64, i64 %words, align 16
  %args = call ptr @word(ptr %arguments, i64 0)
  %kwargs = call ptr @word(ptr %arguments, i64 1)
  %count = call i64 @integer(ptr %head, i64 $num_states)
  br label %loop
loop:
  %i = phi i64 [ 0, %start ], [ %i.next, %next ]
  %done = icmp sge i64 %i, %count
  br i1 %done, label %refuse, label %try
try:
  %state.n = add i64 %i, $states
  %state = call ptr @word(ptr %head, i64 %state.n)
  %checks = call ptr @word(ptr %state, i64 $checks)
  %rest = call ptr @check(ptr %facts, ptr %state, ptr %frame, ptr %checks, ptr %args)
  %args.ok = icmp ne ptr %rest, null
  br i1 %args.ok, label %try.kwargs, label %next
try.kwargs:
  %kwargs.rest = call ptr @check(ptr %facts, ptr %state, ptr %frame, ptr %rest, ptr %kwargs)
  %kwargs.ok = icmp ne ptr %kwargs.rest, null
  br i1 %kwargs.ok, label %try.captures, label %next
try.captures:
  %captures = call i64 @integer(ptr %state, i64 $num_captures)
  %capture.list = call ptr @word(ptr %state, i64 $captures)
  br label %capture.loop
capture.loop:
  %c = phi i64 [ 0, %try.captures ], [ %c.next, %capture.ok ]
  %capture.pc = phi ptr [ %kwargs.rest, %try.captures ], [ %capture.rest, %capture.ok ]
  %captured.all = icmp eq i64 %c, %captures
  br i1 %captured.all, label %found, label %capture
capture:
  %captured = call ptr @word(ptr %capture.list, i64 %c)
  %capture.rest = call ptr @check(ptr %facts, ptr %state, ptr %frame, ptr %capture.pc, ptr %captured)
  %capture.right = icmp ne ptr %capture.rest, null
  br i1 %capture.right, label %capture.ok, label %next
capture.ok:
  %c.next = add i64 %c, 1
  br label %capture.loop
next:
  %i.next = add i64 %i, 1
  br label %loop
found:
  %may.donate = call i1 @may_donate(ptr %state, ptr %frame)
  br i1 %may.donate, label %run, label %refuse
run:
  %result = call ptr @run(ptr %facts, ptr %state, ptr %frame)
  ret ptr %result
refuse:
  call void @Py_IncRef(ptr %refused)
  ret ptr %refused
}

; Whether the donated inputs may be overwritten: no NumPy array sees them, and none is given twice.
define internal i1 @may_donate(ptr %state, ptr %frame) nounwind {
entry:
  %count = call i64 @integer(ptr %state, i64 $num_donated)
  %list = call ptr @word(ptr %state, i64 $donated)
  %inputs = call i64 @integer(ptr %state, i64 $num_inputs)
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i.next, %alone ]
  %done = icmp eq i64 %i, %count
  br i1 %done, label %yes, label %look
look:
  %number = call i64 @integer(ptr %list, i64 %i)
  %buffer = call ptr @word(ptr %frame, i64 %number)
  %seen = call i1 @has_views(ptr %buffer)
  br i1 %seen, label %no, label %others
others:
  %j = phi i64 [ 0, %look ], [ %j.next, %other.ok ]
  %compared = icmp eq i64 %j, %inputs
  br i1 %compared, label %alone, label %other
other:
  %other.buffer = call ptr @word(ptr %frame, i64 %j)
  %is.equal = icmp eq ptr %other.buffer, %buffer
  %is.itself = icmp eq i64 %j, %number
  %not.itself = xor i1 %is.itself, true
  %is.twice = and i1 %is.equal, %not.itself
  br i1 %is.twice, label %no, label %other.ok
other.ok:
  %j.next = add i64 %j, 1
  br label %others
alone:
  %i.next = add i64 %i, 1
  br label %loop
yes:
  ret i1 true
no:
  ret i1 false
}
"""


def call_text(target: Target, slots: dict[str, int]) -> str:
    """LLVM IR of `infini_call`.

    Args:
        target: processor to make code for.
        slots: offsets of the slots of `SLOTS` in their objects.
    """
    values = {
        name: str(value) for name, value in globals().items() if name.isupper() and isinstance(value, int)
    }
    for words in (HEAD, FACTS, STATE, OUTPUT):
        values |= {name: str(number) for number, name in enumerate(words)}
    values |= {name: str(offset) for name, offset in slots.items()}
    values["OUTPUT_WORDS"] = str(len(OUTPUT))
    text = (
        _DECLARES
        + call_checks.TEXT
        + call_memory.BUFFERS
        + call_memory.FREE_LISTS
        + _CALL
        + call_running.TEXT
    )
    head = f'target triple = "{target.triple}"\n'
    return head + _LOADS.sub(_load, string.Template(text).substitute(values))


# `%v = call ptr @word(ptr %p, i64 N)` and its kin: loads of word N, and of the slot at byte N. They are
# written out here, because nothing inlines calls afterwards.
_LOADS: Final = re.compile(r"%(\S+) = call (ptr|i64) @(word|integer|slot)\(ptr (\S+), i64 (\S+)\)")
_ELEMENT: Final = {"word": "i64", "integer": "i64", "slot": "i8"}


def _load(found: re.Match[str]) -> str:
    name, kind, function, pointer, number = found.groups()
    return (
        f"%{name}.at = getelementptr {_ELEMENT[function]}, ptr {pointer}, i64 {number}\n"
        f"  %{name} = load {kind}, ptr %{name}.at, align 8"
    )
