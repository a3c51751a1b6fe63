"""LLVM IR that takes memory for buffers from the free lists of `core.memory`, and gives it back; a part of
`call_text`.
"""

from __future__ import annotations

from typing import Final

BUFFERS: Final = """
; A new buffer as a record of an output describes it, or null with an exception.
define internal ptr @new_buffer(ptr %facts, ptr %record) nounwind {
entry:
  %class = call ptr @word(ptr %facts, i64 $buffer)
  %free = call ptr @word(ptr %record, i64 $free_list)
  %count = call i64 @PyList_Size(ptr %free)
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %recycle, label %ask
ask:
  %nbytes.asked = call ptr @word(ptr %record, i64 $nbytes_object)
  %asked = call ptr (ptr, ...) @PyObject_CallFunctionObjArgs(ptr %class, ptr %nbytes.asked, ptr null)
  ret ptr %asked
recycle:
  %last = sub i64 %count, 1
  %block = call ptr @PyList_GetItem(ptr %free, i64 %last)
  call void @Py_IncRef(ptr %block)
  %cut = call i32 @PyList_SetSlice(ptr %free, i64 %last, i64 %count, ptr null)
  %buffer = call ptr @PyType_GenericAlloc(ptr %class, i64 0)
  %made = icmp ne ptr %buffer, null
  br i1 %made, label %count.it, label %end
count.it:
  %size = call i64 @integer(ptr %record, i64 $size)
  call void @count_taken(ptr %facts, i64 %size)
  call void @count_kept(ptr %facts, i64 %size)
  %owner = call ptr @PyTuple_GetItem(ptr %block, i64 0)
  call void @fill(ptr %buffer, i64 $BUFFER_BLOCK, ptr %owner)
  %address = call ptr @PyTuple_GetItem(ptr %block, i64 1)
  call void @fill(ptr %buffer, i64 $BUFFER_ADDRESS, ptr %address)
  %size.object = call ptr @word(ptr %record, i64 $size_object)
  call void @fill(ptr %buffer, i64 $BUFFER_SIZE, ptr %size.object)
  %nbytes = call ptr @word(ptr %record, i64 $nbytes_object)
  call void @fill(ptr %buffer, i64 $BUFFER_NBYTES, ptr %nbytes)
  br label %end
end:
  call void @Py_DecRef(ptr %block)
  ret ptr %buffer
}

; Whether a NumPy array may see the memory of a buffer: it was adopted, or others hold its owner.
define internal i1 @has_views(ptr %buffer) nounwind {
  %size.object = call ptr @slot(ptr %buffer, i64 $BUFFER_SIZE)
  %size = call i64 @PyLong_AsLongLong(ptr %size.object)
  %is.adopted = icmp eq i64 %size, 0
  %owner = call ptr @slot(ptr %buffer, i64 $BUFFER_BLOCK)
  %references = load i32, ptr %owner, align 4
  %is.shared = icmp ne i32 %references, 1
  %seen = or i1 %is.adopted, %is.shared
  ret i1 %seen
}
"""

FREE_LISTS: Final = """
@known = internal global ptr null

; Tell the finalizer the facts.
define void @infini_know(ptr %facts) nounwind {
  store ptr %facts, ptr @known, align 8
  ret void
}

; HostBuffer.__del__: give the block back, unless something else holds it.
define ptr @infini_give(ptr %buffer, ptr %unused) nounwind {
entry:
  %facts = load ptr, ptr @known, align 8
  %none = call ptr @word(ptr %facts, i64 $none)
  call void @Py_IncRef(ptr %none)
  %size.object = call ptr @slot(ptr %buffer, i64 $BUFFER_SIZE)
  %address = call ptr @slot(ptr %buffer, i64 $BUFFER_ADDRESS)
  %has.size = icmp ne ptr %size.object, null
  %has.address = icmp ne ptr %address, null
  %is.whole = and i1 %has.size, %has.address
  br i1 %is.whole, label %sized, label %end
sized:
  %size = call i64 @PyLong_AsLongLong(ptr %size.object)
  %is.ours = icmp sgt i64 %size, 0
  br i1 %is.ours, label %count, label %end
count:
  %counts = call ptr @word(ptr %facts, i64 $counts)
  %used = load i64, ptr %counts, align 8
  %used.next = sub i64 %used, %size
  store i64 %used.next, ptr %counts, align 8
  %owner = call ptr @slot(ptr %buffer, i64 $BUFFER_BLOCK)
  %references = load i32, ptr %owner, align 4
  %is.alone = icmp eq i32 %references, 1
  %kept.p = getelementptr i64, ptr %counts, i64 2
  %kept = load i64, ptr %kept.p, align 8
  %kept.next = add i64 %kept, %size
  %most = call i64 @integer(ptr %facts, i64 $most_kept)
  %has.room = icmp sle i64 %kept.next, %most
  %is.kept = and i1 %is.alone, %has.room
  br i1 %is.kept, label %keep, label %end
keep:
  %lists = call ptr @word(ptr %facts, i64 $free_lists)
  %found = call ptr @PyDict_GetItemWithError(ptr %lists, ptr %size.object)
  %is.new = icmp eq ptr %found, null
  br i1 %is.new, label %make, label %append
make:
  %made = call ptr @PyList_New(i64 0)
  %ignored = call i32 @PyDict_SetItem(ptr %lists, ptr %size.object, ptr %made)
  call void @Py_DecRef(ptr %made)
  br label %append
append:
  %list = phi ptr [ %found, %keep ], [ %made, %make ]
  %block = call ptr @PyTuple_New(i64 2)
  call void @Py_IncRef(ptr %owner)
  %first = call i32 @PyTuple_SetItem(ptr %block, i64 0, ptr %owner)
  call void @Py_IncRef(ptr %address)
  %second = call i32 @PyTuple_SetItem(ptr %block, i64 1, ptr %address)
  %appended = call i32 @PyList_Append(ptr %list, ptr %block)
  call void @Py_DecRef(ptr %block)
  store i64 %kept.next, ptr %kept.p, align 8
  br label %end
end:
  ret ptr %none
}

; HostAllocator.take(size class): a kept block, or None; it counts as used either way.
define ptr @infini_take(ptr %self, ptr %size.object) nounwind {
entry:
  %facts = load ptr, ptr @known, align 8
  %size = call i64 @PyLong_AsLongLong(ptr %size.object)
  call void @count_taken(ptr %facts, i64 %size)
  %lists = call ptr @word(ptr %facts, i64 $free_lists)
  %list = call ptr @PyDict_GetItemWithError(ptr %lists, ptr %size.object)
  %has.list = icmp ne ptr %list, null
  br i1 %has.list, label %look, label %nothing
look:
  %count = call i64 @PyList_Size(ptr %list)
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %pop, label %nothing
pop:
  %last = sub i64 %count, 1
  %block = call ptr @PyList_GetItem(ptr %list, i64 %last)
  call void @Py_IncRef(ptr %block)
  %cut = call i32 @PyList_SetSlice(ptr %list, i64 %last, i64 %count, ptr null)
  call void @count_kept(ptr %facts, i64 %size)
  ret ptr %block
nothing:
  %none = call ptr @word(ptr %facts, i64 $none)
  call void @Py_IncRef(ptr %none)
  ret ptr %none
}

define internal void @count_taken(ptr %facts, i64 %size) nounwind {
  %counts = call ptr @word(ptr %facts, i64 $counts)
  %used = load i64, ptr %counts, align 8
  %used.next = add i64 %used, %size
  store i64 %used.next, ptr %counts, align 8
  %peak.p = getelementptr i64, ptr %counts, i64 1
  %peak = load i64, ptr %peak.p, align 8
  %is.higher = icmp sgt i64 %used.next, %peak
  %peak.next = select i1 %is.higher, i64 %used.next, i64 %peak
  store i64 %peak.next, ptr %peak.p, align 8
  ret void
}

define internal void @count_kept(ptr %facts, i64 %size) nounwind {
  %counts = call ptr @word(ptr %facts, i64 $counts)
  %kept.p = getelementptr i64, ptr %counts, i64 2
  %kept = load i64, ptr %kept.p, align 8
  %kept.next = sub i64 %kept, %size
  store i64 %kept.next, ptr %kept.p, align 8
  ret void
}
"""
