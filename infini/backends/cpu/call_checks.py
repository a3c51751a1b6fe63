"""LLVM IR that compares the arguments of a call with a recorded signature; a part of `call_text`.

A frame holds words: buffers of the inputs, arrays of the inputs, buffers of the outputs, the arena's buffer,
the table of addresses. A number's value lies in the place of its array.
"""

from __future__ import annotations

from typing import Final

TEXT: Final = """
; Check one leaf and write its buffer, itself and its address into the frame.
define internal i1 @check_leaf(ptr %facts, ptr %state, ptr %frame, ptr %pc, ptr %array) nounwind {
entry:
  %class = call ptr @slot(ptr %array, i64 8)
  %array.class = call ptr @word(ptr %facts, i64 $array)
  %is.array = icmp eq ptr %class, %array.class
  br i1 %is.array, label %placed, label %no
placed:
  %sharding = call ptr @slot(ptr %array, i64 $ARRAY_SHARDING)
  %sharding.known = call ptr @word(ptr %pc, i64 7)
  %weak = call ptr @slot(ptr %array, i64 $ARRAY_WEAK)
  %weak.known = call ptr @word(ptr %pc, i64 5)
  %committed = call ptr @slot(ptr %array, i64 $ARRAY_COMMITTED)
  %committed.known = call ptr @word(ptr %pc, i64 6)
  %same.1 = icmp eq ptr %sharding, %sharding.known
  %same.2 = icmp eq ptr %weak, %weak.known
  %same.3 = icmp eq ptr %committed, %committed.known
  %same.12 = and i1 %same.1, %same.2
  %same = and i1 %same.12, %same.3
  br i1 %same, label %typed, label %no
typed:
  %type = call ptr @slot(ptr %array, i64 $ARRAY_TYPE)
  %type.known = call ptr @word(ptr %pc, i64 2)
  %is.known = icmp eq ptr %type, %type.known
  br i1 %is.known, label %whole, label %compare
compare:
  %dtype = call ptr @slot(ptr %type, i64 $TYPE_DTYPE)
  %dtype.known = call ptr @word(ptr %pc, i64 3)
  %same.dtype = icmp eq ptr %dtype, %dtype.known
  br i1 %same.dtype, label %compare.shape, label %no
compare.shape:
  %shape = call ptr @slot(ptr %type, i64 $TYPE_SHAPE)
  %shape.known = call ptr @word(ptr %pc, i64 4)
  %equal = call i32 @PyObject_RichCompareBool(ptr %shape, ptr %shape.known, i32 2)
  %same.shape = icmp eq i32 %equal, 1
  br i1 %same.shape, label %whole, label %no
whole:
  %buffers = call ptr @slot(ptr %array, i64 $ARRAY_BUFFERS)
  %none = call ptr @word(ptr %facts, i64 $none)
  %layout.known = call ptr @word(ptr %pc, i64 8)
  %has.no.layout = icmp eq ptr %layout.known, null
  %is.elsewhere = icmp eq ptr %buffers, %none
  br i1 %is.elsewhere, label %elsewhere, label %row.major
row.major:
  br i1 %has.no.layout, label %held, label %no
elsewhere:
  ; Deleted, or in a layout.
  br i1 %has.no.layout, label %no, label %look
look:
  %arranged = call ptr @slot(ptr %array, i64 $ARRAY_ARRANGED)
  %is.unset = icmp eq ptr %arranged, null
  %is.none = icmp eq ptr %arranged, %none
  %is.gone = or i1 %is.unset, %is.none
  br i1 %is.gone, label %no, label %arranged.compare
arranged.compare:
  %layout = call ptr @slot(ptr %arranged, i64 $ARRANGED_LAYOUT)
  %same.layout = icmp eq ptr %layout, %layout.known
  %arranged.buffers = call ptr @slot(ptr %arranged, i64 $ARRANGED_BUFFERS)
  br i1 %same.layout, label %held, label %no
held:
  %memory = phi ptr [ %buffers, %row.major ], [ %arranged.buffers, %arranged.compare ]
  %buffer = call ptr @PyTuple_GetItem(ptr %memory, i64 0)
  %buffer.class = call ptr @slot(ptr %buffer, i64 8)
  %buffer.known = call ptr @word(ptr %facts, i64 $buffer)
  %is.ours = icmp eq ptr %buffer.class, %buffer.known
  br i1 %is.ours, label %take, label %no
take:
  %address.object = call ptr @slot(ptr %buffer, i64 $BUFFER_ADDRESS)
  %address = call i64 @PyLong_AsLongLong(ptr %address.object)
  %number = call i64 @integer(ptr %pc, i64 1)
  %inputs = call i64 @integer(ptr %state, i64 $num_inputs)
  %outputs = call i64 @integer(ptr %state, i64 $num_outputs)
  %buffer.p = getelementptr ptr, ptr %frame, i64 %number
  store ptr %buffer, ptr %buffer.p, align 8
  %array.n = add i64 %number, %inputs
  %array.p = getelementptr ptr, ptr %frame, i64 %array.n
  store ptr %array, ptr %array.p, align 8
  %twice = add i64 %array.n, %inputs
  %beyond = add i64 %twice, %outputs
  %entry.n = add i64 %beyond, 1
  %entry.p = getelementptr i64, ptr %frame, i64 %entry.n
  store i64 %address, ptr %entry.p, align 8
  ret i1 true
no:
  ret i1 false
}

; Check a Python number and write its value into the frame; integers that do not fit are left to Python.
define internal i1 @check_number(ptr %state, ptr %frame, ptr %pc, ptr %object) nounwind {
entry:
  %class = call ptr @slot(ptr %object, i64 8)
  %class.known = call ptr @word(ptr %pc, i64 1)
  %is.known = icmp eq ptr %class, %class.known
  br i1 %is.known, label %take, label %no
take:
  %number = call i64 @integer(ptr %pc, i64 2)
  %kind = call i64 @integer(ptr %pc, i64 3)
  %inputs = call i64 @integer(ptr %state, i64 $num_inputs)
  %outputs = call i64 @integer(ptr %state, i64 $num_outputs)
  ; Its place among the buffers is empty, and the place of its array holds its value.
  %buffer.p = getelementptr ptr, ptr %frame, i64 %number
  store ptr null, ptr %buffer.p, align 8
  %value.n = add i64 %number, %inputs
  %value.p = getelementptr i64, ptr %frame, i64 %value.n
  %twice = add i64 %value.n, %inputs
  %beyond = add i64 %twice, %outputs
  %entry.n = add i64 %beyond, 1
  %entry.p = getelementptr i64, ptr %frame, i64 %entry.n
  %address = ptrtoint ptr %value.p to i64
  store i64 %address, ptr %entry.p, align 8
  %is.real = icmp sge i64 %kind, 3
  br i1 %is.real, label %real, label %whole
real:
  %double = call double @PyFloat_AsDouble(ptr %object)
  %is.narrow = icmp eq i64 %kind, 3
  br i1 %is.narrow, label %narrow, label %wide
narrow:
  %float = fptrunc double %double to float
  store float %float, ptr %value.p, align 4
  ret i1 true
wide:
  store double %double, ptr %value.p, align 8
  ret i1 true
whole:
  %integer = call i64 @PyLong_AsLongLong(ptr %object)
  %is.suspect = icmp eq i64 %integer, -1
  br i1 %is.suspect, label %overflow, label %range
overflow:
  %error = call ptr @PyErr_Occurred()
  %is.fine = icmp eq ptr %error, null
  br i1 %is.fine, label %range, label %no
range:
  %low = trunc i64 %integer to i32
  %again = sext i32 %low to i64
  %fits = icmp eq i64 %again, %integer
  %is.long = icmp eq i64 %kind, 2
  %is.right = or i1 %fits, %is.long
  br i1 %is.right, label %keep, label %no
keep:
  ; Little-endian: the first bytes are those of every narrower type.
  store i64 %integer, ptr %value.p, align 8
  ret i1 true
no:
  call void @PyErr_Clear()
  ret i1 false
}

; Check a tree of arguments; returns what follows it in the checks, or null.
define internal ptr @check(ptr %facts, ptr %state, ptr %frame, ptr %pc, ptr %object) nounwind {
entry:
  %child.p = alloca ptr, align 8
  %kind = call i64 @integer(ptr %pc, i64 0)
  switch i64 %kind, label %no [ i64 $LEAF, label %leaf  i64 $SAME, label %same
    i64 $EQUAL, label %equal  i64 $NUMBER, label %number
    i64 $TUPLE, label %node  i64 $LIST, label %node  i64 $DICT, label %node  i64 $FIELDS, label %node ]
leaf:
  %leaf.ok = call i1 @check_leaf(ptr %facts, ptr %state, ptr %frame, ptr %pc, ptr %object)
  %after.leaf = getelementptr i64, ptr %pc, i64 $LEAF_WORDS
  br i1 %leaf.ok, label %leaf.yes, label %no
leaf.yes:
  ret ptr %after.leaf
same:
  %expected = call ptr @word(ptr %pc, i64 1)
  %is.same = icmp eq ptr %object, %expected
  %after.same = getelementptr i64, ptr %pc, i64 2
  br i1 %is.same, label %same.yes, label %no
same.yes:
  ret ptr %after.same
equal:
  %equal.class = call ptr @slot(ptr %object, i64 8)
  %equal.known = call ptr @word(ptr %pc, i64 1)
  %equal.other = call ptr @word(ptr %pc, i64 2)
  %after.equal = getelementptr i64, ptr %pc, i64 3
  %same.kind = icmp eq ptr %equal.class, %equal.known
  br i1 %same.kind, label %equal.compare, label %no
equal.compare:
  %is.equal = call i32 @PyObject_RichCompareBool(ptr %object, ptr %equal.other, i32 2)
  %equals = icmp eq i32 %is.equal, 1
  br i1 %equals, label %equal.yes, label %no
equal.yes:
  ret ptr %after.equal
number:
  %number.ok = call i1 @check_number(ptr %state, ptr %frame, ptr %pc, ptr %object)
  %after.number = getelementptr i64, ptr %pc, i64 4
  br i1 %number.ok, label %number.yes, label %no
number.yes:
  ret ptr %after.number
node:
  %class = call ptr @slot(ptr %object, i64 8)
  %class.known = call ptr @word(ptr %pc, i64 1)
  %same.class = icmp eq ptr %class, %class.known
  br i1 %same.class, label %node.count, label %no
node.count:
  %count = call i64 @integer(ptr %pc, i64 2)
  %children = getelementptr i64, ptr %pc, i64 3
  switch i64 %kind, label %named [ i64 $TUPLE, label %sized  i64 $LIST, label %sized  i64 $DICT, label %dict ]
sized:
  %size.p = getelementptr i8, ptr %object, i64 16
  %size = load i64, ptr %size.p, align 8
  %same.size = icmp eq i64 %size, %count
  br i1 %same.size, label %loop.start, label %no
dict:
  %entries = call i64 @PyDict_Size(ptr %object)
  %same.entries = icmp eq i64 %entries, %count
  br i1 %same.entries, label %named, label %no
named:
  %after.names = getelementptr i64, ptr %children, i64 %count
  br label %loop.start
loop.start:
  %first = phi ptr [ %children, %sized ], [ %after.names, %named ]
  br label %loop
loop:
  %i = phi i64 [ 0, %loop.start ], [ %i.next, %checked ]
  %at = phi ptr [ %first, %loop.start ], [ %at.next, %checked ]
  %done = icmp eq i64 %i, %count
  br i1 %done, label %yes, label %get
get:
  switch i64 %kind, label %get.field [ i64 $TUPLE, label %get.tuple  i64 $LIST, label %get.list
    i64 $DICT, label %get.key ]
get.tuple:
  %tuple.child = call ptr @PyTuple_GetItem(ptr %object, i64 %i)
  br label %got
get.list:
  %list.child = call ptr @PyList_GetItem(ptr %object, i64 %i)
  br label %got
get.key:
  %key = call ptr @word(ptr %children, i64 %i)
  %dict.child = call ptr @PyDict_GetItemWithError(ptr %object, ptr %key)
  br label %got
get.field:
  %name = call ptr @word(ptr %children, i64 %i)
  %field.child = call ptr @PyObject_GetAttr(ptr %object, ptr %name)
  %has.field = icmp ne ptr %field.child, null
  br i1 %has.field, label %release, label %missing
release:
  ; The object keeps what its field holds.
  call void @Py_DecRef(ptr %field.child)
  br label %got
got:
  %child = phi ptr [ %tuple.child, %get.tuple ], [ %list.child, %get.list ], [ %dict.child, %get.key ],
    [ %field.child, %release ]
  %has.child = icmp ne ptr %child, null
  br i1 %has.child, label %descend, label %missing
descend:
  %at.next = call ptr @check(ptr %facts, ptr %state, ptr %frame, ptr %at, ptr %child)
  %is.right = icmp ne ptr %at.next, null
  br i1 %is.right, label %checked, label %no
checked:
  %i.next = add i64 %i, 1
  br label %loop
yes:
  ret ptr %at
missing:
  call void @PyErr_Clear()
  br label %no
no:
  ret ptr null
}
"""
