"""LLVM IR that runs the program of a call whose arguments are known, and makes arrays of its results; a part
of `call_text`.
"""

from __future__ import annotations

from typing import Final

TEXT: Final = """
; Drop the references of a frame to its inputs, outputs and arena.
define internal void @drop(ptr %frame, i64 %start, i64 %count) nounwind {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i.next, %dropped ]
  %done = icmp eq i64 %i, %count
  br i1 %done, label %end, label %look
look:
  %n = add i64 %i, %start
  %held = call ptr @word(ptr %frame, i64 %n)
  %any = icmp ne ptr %held, null
  br i1 %any, label %release, label %dropped
release:
  call void @Py_DecRef(ptr %held)
  br label %dropped
dropped:
  %i.next = add i64 %i, 1
  br label %loop
end:
  ret void
}

; Run the program of a frame whose inputs are known; the results, or null with an exception.
define internal ptr @run(ptr %facts, ptr %state, ptr %frame) nounwind {
entry:
  %inputs = call i64 @integer(ptr %state, i64 $num_inputs)
  %outputs = call i64 @integer(ptr %state, i64 $num_outputs)
  %twice = shl i64 %inputs, 1
  %arena.n = add i64 %twice, %outputs
  %table.n = add i64 %arena.n, 1
  %table = getelementptr i64, ptr %frame, i64 %table.n
  br label %hold
hold:
  %h = phi i64 [ 0, %entry ], [ %h.next, %hold.one ]
  %held.all = icmp eq i64 %h, %inputs
  br i1 %held.all, label %clear, label %hold.one
hold.one:
  %held = call ptr @word(ptr %frame, i64 %h)
  call void @Py_IncRef(ptr %held)  ; which leaves null alone
  %h.next = add i64 %h, 1
  br label %hold
clear:
  %z = phi i64 [ %twice, %hold ], [ %z.next, %clear.one ]
  %cleared = icmp eq i64 %z, %table.n
  br i1 %cleared, label %make, label %clear.one
clear.one:
  %z.p = getelementptr ptr, ptr %frame, i64 %z
  store ptr null, ptr %z.p, align 8
  %z.next = add i64 %z, 1
  br label %clear

; Buffers of the outputs.
make:
  %records = call ptr @word(ptr %state, i64 $outputs)
  br label %make.loop
make.loop:
  %o = phi i64 [ 0, %make ], [ %o.next, %made ]
  %made.all = icmp eq i64 %o, %outputs
  br i1 %made.all, label %arena, label %make.one
make.one:
  %record.n = mul i64 %o, $OUTPUT_WORDS
  %record = getelementptr i64, ptr %records, i64 %record.n
  %alias = call i64 @integer(ptr %record, i64 $alias)
  %is.new = icmp slt i64 %alias, 0
  br i1 %is.new, label %make.new, label %make.alias
make.alias:
  %aliased = call ptr @word(ptr %frame, i64 %alias)
  call void @Py_IncRef(ptr %aliased)
  br label %made
make.new:
  %new = call ptr @new_buffer(ptr %facts, ptr %record)
  %is.made = icmp ne ptr %new, null
  br i1 %is.made, label %made, label %fail
made:
  %buffer = phi ptr [ %aliased, %make.alias ], [ %new, %make.new ]
  %buffer.n = add i64 %twice, %o
  %buffer.p = getelementptr ptr, ptr %frame, i64 %buffer.n
  store ptr %buffer, ptr %buffer.p, align 8
  %address.object = call ptr @slot(ptr %buffer, i64 $BUFFER_ADDRESS)
  %address = call i64 @PyLong_AsLongLong(ptr %address.object)
  %address.n = add i64 %inputs, %o
  %address.p = getelementptr i64, ptr %table, i64 %address.n
  store i64 %address, ptr %address.p, align 8
  %o.next = add i64 %o, 1
  br label %make.loop

; The arena, the addresses that never change, and the program.
arena:
  %arena.record = call ptr @word(ptr %state, i64 $arena)
  %has.arena = icmp ne ptr %arena.record, null
  br i1 %has.arena, label %arena.new, label %tail
arena.new:
  %arena.buffer = call ptr @new_buffer(ptr %facts, ptr %arena.record)
  %arena.made = icmp ne ptr %arena.buffer, null
  br i1 %arena.made, label %arena.take, label %fail
arena.take:
  %arena.p = getelementptr ptr, ptr %frame, i64 %arena.n
  store ptr %arena.buffer, ptr %arena.p, align 8
  %arena.object = call ptr @slot(ptr %arena.buffer, i64 $BUFFER_ADDRESS)
  %arena.address = call i64 @PyLong_AsLongLong(ptr %arena.object)
  br label %tail
tail:
  %arena.entry = phi i64 [ 0, %arena ], [ %arena.address, %arena.take ]
  %arena.place.n = add i64 %inputs, %outputs
  %arena.place = getelementptr i64, ptr %table, i64 %arena.place.n
  store i64 %arena.entry, ptr %arena.place, align 8
  %tail.list = call ptr @word(ptr %state, i64 $tail)
  %tail.start = call i64 @integer(ptr %state, i64 $tail_start)
  %tail.count = call i64 @integer(ptr %state, i64 $tail_count)
  br label %tail.loop
tail.loop:
  %t = phi i64 [ 0, %tail ], [ %t.next, %tail.one ]
  %tail.done = icmp eq i64 %t, %tail.count
  br i1 %tail.done, label %enter, label %tail.one
tail.one:
  %t.value = call i64 @integer(ptr %tail.list, i64 %t)
  %t.n = add i64 %t, %tail.start
  %t.p = getelementptr i64, ptr %table, i64 %t.n
  store i64 %t.value, ptr %t.p, align 8
  %t.next = add i64 %t, 1
  br label %tail.loop
enter:
  %entry.function = call ptr @word(ptr %state, i64 $entry)
  %mode = call i64 @integer(ptr %state, i64 $mode)
  %releases = call i64 @integer(ptr %state, i64 $releases)
  %unlocks = icmp ne i64 %releases, 0
  br i1 %unlocks, label %unlock, label %go
unlock:
  %thread.saved = call ptr @PyEval_SaveThread()
  br label %go
go:
  %thread = phi ptr [ null, %enter ], [ %thread.saved, %unlock ]
  switch i64 %mode, label %pooled [ i64 $SINGLE, label %single  i64 $SERIAL, label %serial ]
single:
  call void %entry.function(ptr %table, ptr null)
  br label %ran
serial:
  call void %entry.function(ptr null, ptr %table)
  br label %ran
pooled:
  %pool = call ptr @word(ptr %state, i64 $pool)
  %wakes = call i64 @integer(ptr %state, i64 $wakes)
  %wakes.narrow = trunc i64 %wakes to i32
  call void @infini_begin(ptr %pool, i32 %wakes.narrow)
  call void %entry.function(ptr %pool, ptr %table)
  call void @infini_end(ptr %pool)
  br label %ran
ran:
  br i1 %unlocks, label %lock, label %donate
lock:
  call void @PyEval_RestoreThread(ptr %thread)
  br label %donate

; Donated arrays lose their buffers.
donate:
  %donated.count = call i64 @integer(ptr %state, i64 $num_donated)
  %donated.list = call ptr @word(ptr %state, i64 $donated)
  %none = call ptr @word(ptr %facts, i64 $none)
  br label %donate.loop
donate.loop:
  %d = phi i64 [ 0, %donate ], [ %d.next, %donate.one ]
  %donate.done = icmp eq i64 %d, %donated.count
  br i1 %donate.done, label %wrap, label %donate.one
donate.one:
  %d.number = call i64 @integer(ptr %donated.list, i64 %d)
  %d.n = add i64 %d.number, %inputs
  %d.array = call ptr @word(ptr %frame, i64 %d.n)
  %d.old = call ptr @slot(ptr %d.array, i64 $ARRAY_BUFFERS)
  call void @fill(ptr %d.array, i64 $ARRAY_BUFFERS, ptr %none)
  call void @Py_DecRef(ptr %d.old)
  %d.next = add i64 %d, 1
  br label %donate.loop

; Arrays around the buffers of the outputs.
wrap:
  %sharding = call ptr @word(ptr %state, i64 $sharding)
  %finish = call ptr @word(ptr %state, i64 $finish)
  %is.one = icmp eq ptr %finish, null
  br i1 %is.one, label %wrap.loop, label %wrap.list
wrap.list:
  %list.made = call ptr @PyList_New(i64 %outputs)
  %has.list = icmp ne ptr %list.made, null
  br i1 %has.list, label %wrap.loop, label %fail
wrap.loop:
  %w = phi i64 [ 0, %wrap ], [ 0, %wrap.list ], [ %w.next, %wrap.keep ]
  %list = phi ptr [ null, %wrap ], [ %list.made, %wrap.list ], [ %list, %wrap.keep ]
  %wrapped.all = icmp eq i64 %w, %outputs
  br i1 %wrapped.all, label %finish.all, label %wrap.one
wrap.one:
  %w.record.n = mul i64 %w, $OUTPUT_WORDS
  %w.record = getelementptr i64, ptr %records, i64 %w.record.n
  %w.buffer.n = add i64 %twice, %w
  %w.buffer = call ptr @word(ptr %frame, i64 %w.buffer.n)
  %tuple = call ptr @PyTuple_New(i64 1)
  %has.tuple = icmp ne ptr %tuple, null
  br i1 %has.tuple, label %wrap.array, label %fail.list
wrap.array:
  call void @Py_IncRef(ptr %w.buffer)
  %ignored = call i32 @PyTuple_SetItem(ptr %tuple, i64 0, ptr %w.buffer)
  %array.class = call ptr @word(ptr %facts, i64 $array)
  %array = call ptr @PyType_GenericAlloc(ptr %array.class, i64 0)
  %has.array = icmp ne ptr %array, null
  br i1 %has.array, label %wrap.fill, label %fail.tuple
wrap.fill:
  %buffers.p = getelementptr i8, ptr %array, i64 $ARRAY_BUFFERS
  store ptr %tuple, ptr %buffers.p, align 8
  %w.type = call ptr @word(ptr %w.record, i64 $type)
  call void @fill(ptr %array, i64 $ARRAY_TYPE, ptr %w.type)
  %w.weak = call ptr @word(ptr %w.record, i64 $weak)
  call void @fill(ptr %array, i64 $ARRAY_WEAK, ptr %w.weak)
  %w.committed = call ptr @word(ptr %w.record, i64 $committed)
  call void @fill(ptr %array, i64 $ARRAY_COMMITTED, ptr %w.committed)
  call void @fill(ptr %array, i64 $ARRAY_SHARDING, ptr %sharding)
  call void @fill(ptr %array, i64 $ARRAY_READY, ptr %none)
  br i1 %is.one, label %one, label %wrap.keep
wrap.keep:
  %kept = call i32 @PyList_SetItem(ptr %list, i64 %w, ptr %array)
  %w.next = add i64 %w, 1
  br label %wrap.loop
one:
  br label %end
finish.all:
  %tree = call ptr (ptr, ...) @PyObject_CallFunctionObjArgs(ptr %finish, ptr %list, ptr null)
  call void @Py_DecRef(ptr %list)
  br label %end
fail.tuple:
  call void @Py_DecRef(ptr %tuple)
  br label %fail.list
fail.list:
  %no.list = icmp eq ptr %list, null
  br i1 %no.list, label %fail, label %fail.drop
fail.drop:
  call void @Py_DecRef(ptr %list)
  br label %fail
fail:
  br label %end
end:
  %result = phi ptr [ %array, %one ], [ %tree, %finish.all ], [ null, %fail ]
  call void @drop(ptr %frame, i64 0, i64 %inputs)
  %outputs.and.arena = add i64 %outputs, 1
  call void @drop(ptr %frame, i64 %twice, i64 %outputs.and.arena)
  ret ptr %result
}
"""
