"""The native part of the thread pool, as LLVM IR: claiming tasks, waiting, waking, placing the workers.

Only the caller walks the program. A phase is published as one 64-bit word {generation:24 | number of tasks:20
| next:20} that every thread claims from by fetch-and-add. Whoever gets a number below the number of tasks has
read both of the same job, and its fields cannot change before that task is counted as done: a late worker
can never mix two jobs. The caller waits only for workers that have claimed a task, so an absent one costs
nothing.
"""

from __future__ import annotations

import string
from typing import Final

from infini.compiler.llvm.target import Target

# Offsets into the pool's memory; what different threads write lies in different pairs of cache lines.
WORD: Final = 0  # i64, claimed from
DONE: Final = 128  # i64, tasks finished
FUNCTION: Final = 256  # ptr, written by the caller while no task is open
ARGS: Final = 264  # ptr
FLOAT_MODE: Final = 272  # i32, rounding and exception mode of the caller
EPOCH: Final = 384  # i32, what parked workers wait on; changes to wake them
STOP: Final = 388  # i32
PARKED: Final = 512  # i32, parked workers
OWNER: Final = 640  # i64, the thread that runs a program on this pool, 0 when none
DEPTH: Final = 648  # i64, programs that the owner has begun
IS_AWAKE: Final = 656  # i32, whether the owner's program wants its workers awake
CALLER_CPU: Final = 660  # i32, where the caller ran last; -1 unknown, -2 affinity is left alone
NUM_WORKERS: Final = 664  # i32
SPIN: Final = 668  # i32, pauses before a worker parks
MISSED: Final = 672  # i64, tasks run without help since workers were woken last
KERNEL_IDS: Final = 1024  # i32 per worker, Linux's thread ids
CPU_MASK: Final = 2048  # 128 bytes, the processors this process may use
MEMORY_BYTES: Final = 4096

WAKE_TASKS: Final = 32  # missed tasks that waking is worth, which is a call of the system
YIELD_AFTER: Final = 200  # pauses of a thread that waits before it offers its processor to others

MAX_WORKERS: Final = 255
MAX_TASKS: Final = (1 << 20) - 1024  # claims beyond the end must not reach the neighbouring field

_CORE: Final = """
define void @infini_pause(i64 %count) nounwind {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  $PAUSE
  %next = add i64 %i, 1
  %again = icmp slt i64 %next, %count
  br i1 %again, label %loop, label %done
done:
  ret void
}

; Claim and run tasks until none is left; returns how many this thread ran.
define internal i64 @run_tasks(ptr %pool) nounwind {
entry:
  %word.p = getelementptr i8, ptr %pool, i64 $WORD
  %done.p = getelementptr i8, ptr %pool, i64 $DONE
  %function.p = getelementptr i8, ptr %pool, i64 $FUNCTION
  %args.p = getelementptr i8, ptr %pool, i64 $ARGS
  %mode.p = getelementptr i8, ptr %pool, i64 $FLOAT_MODE
  br label %look
look:
  %count = phi i64 [ 0, %entry ], [ %count.next, %work ]
  %seen = load atomic i64, ptr %word.p monotonic, align 8
  %seen.next = and i64 %seen, 1048575
  %seen.shifted = lshr i64 %seen, 20
  %seen.tasks = and i64 %seen.shifted, 1048575
  %open = icmp ult i64 %seen.next, %seen.tasks
  br i1 %open, label %claim, label %none
claim:
  %word = atomicrmw add ptr %word.p, i64 1 acq_rel
  %task = and i64 %word, 1048575
  %shifted = lshr i64 %word, 20
  %tasks = and i64 %shifted, 1048575
  %mine = icmp ult i64 %task, %tasks
  br i1 %mine, label %work, label %none
work:
  %function = load ptr, ptr %function.p, align 8
  %args = load ptr, ptr %args.p, align 8
  $SET_FLOAT_MODE
  call void %function(ptr %args, i64 %task)
  %finished = atomicrmw add ptr %done.p, i64 1 release
  %count.next = add i64 %count, 1
  br label %look
none:
  ret i64 %count
}

; Work as long as there is some; return after SPIN pauses without.
define void @infini_work(ptr %pool) nounwind {
entry:
  %spin.p = getelementptr i8, ptr %pool, i64 $SPIN
  %stop.p = getelementptr i8, ptr %pool, i64 $STOP
  %limit = load i32, ptr %spin.p, align 4
  br label %look
look:
  %idle = phi i32 [ 0, %entry ], [ %idle.next, %wait ], [ %idle.next, %yield ]
  %ran = call i64 @run_tasks(ptr %pool)
  %busy = icmp ne i64 %ran, 0
  %idle.now = select i1 %busy, i32 0, i32 %idle
  %stop = load atomic i32, ptr %stop.p monotonic, align 4
  %stopped = icmp ne i32 %stop, 0
  %tired = icmp sge i32 %idle.now, %limit
  %leave = or i1 %stopped, %tired
  br i1 %leave, label %done, label %wait
wait:
  $PAUSE
  %idle.next = add i32 %idle.now, 1
  %rest = urem i32 %idle.next, $YIELD_AFTER
  %rested = icmp eq i32 %rest, 0
  br i1 %rested, label %yield, label %look
yield:
  ; Somebody else may have work while this thread only waits.
  %yielded = call i32 @$YIELD()
  br label %look
done:
  ret void
}

; Run the tasks 0 .. num_tasks - 1 of a function, in parallel where workers are awake.
define void @infini_phase(ptr %pool, ptr %function, ptr %args, i64 %num_tasks) nounwind {
entry:
  %many = icmp sgt i64 %num_tasks, 1
  br i1 %many, label %check, label %serial.check
check:
  %workers.p = getelementptr i8, ptr %pool, i64 $NUM_WORKERS
  %workers = load i32, ptr %workers.p, align 4
  %has.workers = icmp ne i32 %workers, 0
  br i1 %has.workers, label %check.owner, label %serial
check.owner:
  %owner.p = getelementptr i8, ptr %pool, i64 $OWNER
  %owner = load atomic i64, ptr %owner.p monotonic, align 8
  %self = call i64 @$THREAD_SELF()
  %is.owner = icmp eq i64 %owner, %self
  br i1 %is.owner, label %check.awake, label %serial
check.awake:
  %parked.p = getelementptr i8, ptr %pool, i64 $PARKED
  %parked = load atomic i32, ptr %parked.p monotonic, align 4
  %all.parked = icmp sge i32 %parked, %workers
  %awake.p = getelementptr i8, ptr %pool, i64 $IS_AWAKE
  %awake = load i32, ptr %awake.p, align 4
  %asleep = icmp eq i32 %awake, 0
  %alone = and i1 %all.parked, %asleep
  br i1 %alone, label %miss, label %parallel
miss:
  ; A short program is not worth waking anybody, but many of them are; where calls follow each other, workers
  ; then stay awake.
  %missed.p = getelementptr i8, ptr %pool, i64 $MISSED
  %missed = load i64, ptr %missed.p, align 8
  %missed.next = add i64 %missed, %num_tasks
  %worth = icmp sge i64 %missed.next, $WAKE_TASKS
  %missed.kept = select i1 %worth, i64 0, i64 %missed.next
  store i64 %missed.kept, ptr %missed.p, align 8
  br i1 %worth, label %rouse, label %serial
rouse:
  store i32 1, ptr %awake.p, align 4
  br label %parallel
parallel:
  %function.p = getelementptr i8, ptr %pool, i64 $FUNCTION
  %args.p = getelementptr i8, ptr %pool, i64 $ARGS
  %word.p = getelementptr i8, ptr %pool, i64 $WORD
  %done.p = getelementptr i8, ptr %pool, i64 $DONE
  store ptr %function, ptr %function.p, align 8
  store ptr %args, ptr %args.p, align 8
  store atomic i64 0, ptr %done.p monotonic, align 8
  %old = load atomic i64, ptr %word.p monotonic, align 8
  %generation = lshr i64 %old, 40
  %generation.next = add i64 %generation, 1
  %high = shl i64 %generation.next, 40
  %middle = shl i64 %num_tasks, 20
  %word = or i64 %high, %middle
  store atomic i64 %word, ptr %word.p release, align 8
  $WAKE_PARKED
  %ran = call i64 @run_tasks(ptr %pool)
  br label %wait
wait:
  %spins = phi i32 [ 0, %parallel ], [ %spins.next, %pause ], [ 0, %yield ]
  %done = load atomic i64, ptr %done.p acquire, align 8
  %complete = icmp sge i64 %done, %num_tasks
  br i1 %complete, label %end, label %wait.more
wait.more:
  %long = icmp sgt i32 %spins, $YIELD_AFTER
  br i1 %long, label %yield, label %pause
pause:
  $PAUSE
  %spins.next = add i32 %spins, 1
  br label %wait
yield:
  %yielded = call i32 @$YIELD()
  br label %wait
serial.check:
  %any = icmp sgt i64 %num_tasks, 0
  br i1 %any, label %serial, label %end
serial:
  br label %serial.loop
serial.loop:
  %task = phi i64 [ 0, %serial ], [ %task.next, %serial.loop ]
  call void %function(ptr %args, i64 %task)
  %task.next = add i64 %task, 1
  %again = icmp slt i64 %task.next, %num_tasks
  br i1 %again, label %serial.loop, label %end
end:
  ret void
}

; Begin a program: this thread becomes the owner unless another one is; with `wake` workers are woken.
define void @infini_begin(ptr %pool, i32 %wake) nounwind {
entry:
  %owner.p = getelementptr i8, ptr %pool, i64 $OWNER
  %depth.p = getelementptr i8, ptr %pool, i64 $DEPTH
  %awake.p = getelementptr i8, ptr %pool, i64 $IS_AWAKE
  %self = call i64 @$THREAD_SELF()
  %owner = load atomic i64, ptr %owner.p monotonic, align 8
  %nested = icmp eq i64 %owner, %self
  br i1 %nested, label %mine, label %try
try:
  %result = cmpxchg ptr %owner.p, i64 0, i64 %self acquire monotonic
  %won = extractvalue { i64, i1 } %result, 1
  br i1 %won, label %mine, label %end
mine:
  %depth = load i64, ptr %depth.p, align 8
  %depth.next = add i64 %depth, 1
  store i64 %depth.next, ptr %depth.p, align 8
  %awake = load i32, ptr %awake.p, align 4
  %awake.next = or i32 %awake, %wake
  store i32 %awake.next, ptr %awake.p, align 4
  $GET_FLOAT_MODE
  $PLACE_WORKERS
  %wanted = icmp ne i32 %wake, 0
  br i1 %wanted, label %wake.parked, label %end
wake.parked:
  $WAKE_PARKED
  br label %end
end:
  ret void
}

define void @infini_end(ptr %pool) nounwind {
entry:
  %owner.p = getelementptr i8, ptr %pool, i64 $OWNER
  %self = call i64 @$THREAD_SELF()
  %owner = load atomic i64, ptr %owner.p monotonic, align 8
  %is.owner = icmp eq i64 %owner, %self
  br i1 %is.owner, label %mine, label %end
mine:
  %depth.p = getelementptr i8, ptr %pool, i64 $DEPTH
  %depth = load i64, ptr %depth.p, align 8
  %depth.next = add i64 %depth, -1
  store i64 %depth.next, ptr %depth.p, align 8
  %last = icmp eq i64 %depth.next, 0
  br i1 %last, label %release, label %end
release:
  %awake.p = getelementptr i8, ptr %pool, i64 $IS_AWAKE
  store i32 0, ptr %awake.p, align 4
  store atomic i64 0, ptr %owner.p release, align 8
  br label %end
end:
  ret void
}

declare i64 @$THREAD_SELF()
declare i32 @$YIELD()
$DECLARES
"""

# Linux: workers are threads of ours that park on a futex, and are kept off the processor of the caller, where
# the kernel likes to put a thread it wakes (it would halve the speed of both).
_LINUX: Final = """
declare i64 @syscall(i64, ...)
declare i32 @sched_getcpu()
declare i32 @sched_setaffinity(i32, i64, ptr)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define internal void @wake_parked(ptr %pool) nounwind {
entry:
  %awake.p = getelementptr i8, ptr %pool, i64 $IS_AWAKE
  %awake = load i32, ptr %awake.p, align 4
  %wanted = icmp ne i32 %awake, 0
  br i1 %wanted, label %look, label %end
look:
  %parked.p = getelementptr i8, ptr %pool, i64 $PARKED
  fence seq_cst
  %parked = load atomic i32, ptr %parked.p monotonic, align 4
  %any = icmp sgt i32 %parked, 0
  br i1 %any, label %wake, label %end
wake:
  %epoch.p = getelementptr i8, ptr %pool, i64 $EPOCH
  %old = atomicrmw add ptr %epoch.p, i32 1 seq_cst
  %woken = call i64 (i64, ...) @syscall(i64 $FUTEX, ptr %epoch.p, i32 129, i32 2147483647, $NONE)
  br label %end
end:
  ret void
}

define internal void @place_workers(ptr %pool) nounwind {
entry:
  %mask = alloca [128 x i8], align 16
  %cpu.p = getelementptr i8, ptr %pool, i64 $CALLER_CPU
  %last = load i32, ptr %cpu.p, align 4
  %free = icmp eq i32 %last, -2
  br i1 %free, label %end, label %look
look:
  %cpu = call i32 @sched_getcpu()
  %same = icmp eq i32 %cpu, %last
  %unknown = icmp slt i32 %cpu, 0
  %keep = or i1 %same, %unknown
  br i1 %keep, label %end, label %move
move:
  store i32 %cpu, ptr %cpu.p, align 4
  %allowed = getelementptr i8, ptr %pool, i64 $CPU_MASK
  call void @llvm.memcpy.p0.p0.i64(ptr align 16 %mask, ptr align 16 %allowed, i64 128, i1 false)
  %byte = lshr i32 %cpu, 3
  %byte.wide = zext i32 %byte to i64
  %byte.p = getelementptr i8, ptr %mask, i64 %byte.wide
  %bits = load i8, ptr %byte.p
  %place = and i32 %cpu, 7
  %bit = shl i32 1, %place
  %bit.narrow = trunc i32 %bit to i8
  %others = xor i8 %bit.narrow, -1
  %kept = and i8 %bits, %others
  store i8 %kept, ptr %byte.p
  %workers.p = getelementptr i8, ptr %pool, i64 $NUM_WORKERS
  %workers = load i32, ptr %workers.p, align 4
  %some = icmp sgt i32 %workers, 0
  br i1 %some, label %loop, label %end
loop:
  %i = phi i32 [ 0, %move ], [ %i.next, %loop ]
  %i.wide = zext i32 %i to i64
  %ids = getelementptr i8, ptr %pool, i64 $KERNEL_IDS
  %id.p = getelementptr i32, ptr %ids, i64 %i.wide
  %id = load atomic i32, ptr %id.p acquire, align 4
  %ignored = call i32 @sched_setaffinity(i32 %id, i64 128, ptr %mask)
  %i.next = add i32 %i, 1
  %again = icmp slt i32 %i.next, %workers
  br i1 %again, label %loop, label %end
end:
  ret void
}

; Body of a worker thread; `start` holds the pool and the worker's number.
define ptr @infini_worker(ptr %start) nounwind {
entry:
  %pool = load ptr, ptr %start, align 8
  %number.p = getelementptr i8, ptr %start, i64 8
  %number = load i64, ptr %number.p, align 8
  %id.wide = call i64 (i64, ...) @syscall(i64 $GETTID)
  %id = trunc i64 %id.wide to i32
  %ids = getelementptr i8, ptr %pool, i64 $KERNEL_IDS
  %id.p = getelementptr i32, ptr %ids, i64 %number
  store atomic i32 %id, ptr %id.p release, align 4
  %epoch.p = getelementptr i8, ptr %pool, i64 $EPOCH
  %stop.p = getelementptr i8, ptr %pool, i64 $STOP
  %parked.p = getelementptr i8, ptr %pool, i64 $PARKED
  %word.p = getelementptr i8, ptr %pool, i64 $WORD
  br label %work
work:
  call void @infini_work(ptr %pool)
  %stop = load atomic i32, ptr %stop.p acquire, align 4
  %stopped = icmp ne i32 %stop, 0
  br i1 %stopped, label %end, label %park
park:
  %epoch = load atomic i32, ptr %epoch.p acquire, align 4
  %count = atomicrmw add ptr %parked.p, i32 1 seq_cst
  fence seq_cst
  ; A job published before the caller could see this worker parked is taken, not slept through.
  %word = load atomic i64, ptr %word.p monotonic, align 8
  %next = and i64 %word, 1048575
  %shifted = lshr i64 %word, 20
  %tasks = and i64 %shifted, 1048575
  %open = icmp ult i64 %next, %tasks
  br i1 %open, label %leave, label %sleep
sleep:
  %slept = call i64 (i64, ...) @syscall(i64 $FUTEX, ptr %epoch.p, i32 128, i32 %epoch, $NONE)
  br label %leave
leave:
  %count.left = atomicrmw sub ptr %parked.p, i32 1 seq_cst
  br label %work
end:
  ret ptr null
}
"""

_X86_MODE: Final = """
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse2.pause()
"""


def runtime_text(target: Target, platform: str, *, is_native: bool) -> str:
    """LLVM IR of the pool's functions.

    Args:
        target: processor to make code for.
        platform: `sys.platform`, which decides the names of system functions.
        is_native: whether workers are threads of ours that park on a futex (Linux), or enter from Python.
    """
    windows = platform == "win32"
    values = {
        name: str(value) for name, value in globals().items() if name.isupper() and isinstance(value, int)
    }
    is_arm = target.triple.startswith(("aarch64", "arm64"))
    values |= {
        "PAUSE": "call void @llvm.x86.sse2.pause()" if target.is_x86 else "",
        "THREAD_SELF": "GetCurrentThreadId" if windows else "pthread_self",
        "YIELD": "SwitchToThread" if windows else "sched_yield",
        "FUTEX": "98" if is_arm else "202",
        "GETTID": "178" if is_arm else "186",
        "NONE": "ptr null, ptr null, i32 0",  # no timeout, no second futex
        "WAKE_PARKED": "call void @wake_parked(ptr %pool)" if is_native else "",
        "PLACE_WORKERS": "call void @place_workers(ptr %pool)" if is_native else "",
        "DECLARES": _X86_MODE if target.is_x86 else "",
        "SET_FLOAT_MODE": "call void @llvm.x86.sse.ldmxcsr(ptr %mode.p)" if target.is_x86 else "",
        "GET_FLOAT_MODE": "",
    }
    if is_arm:
        values["PAUSE"] = "call void @llvm.aarch64.hint(i32 1)"  # yield
        values["DECLARES"] = "declare void @llvm.aarch64.hint(i32)"
    if target.is_x86:
        # Bits 0 to 5 are flags of what has happened; they are not the caller's mode.
        values["GET_FLOAT_MODE"] = (
            f"%mode.p = getelementptr i8, ptr %pool, i64 {FLOAT_MODE}\n"
            "  call void @llvm.x86.sse.stmxcsr(ptr %mode.p)\n"
            "  %mode = load i32, ptr %mode.p, align 4\n"
            "  %mode.clean = and i32 %mode, -64\n"
            "  store i32 %mode.clean, ptr %mode.p, align 4"
        )
    text = _CORE + (_LINUX if is_native else "")
    return f'target triple = "{target.triple}"\n' + string.Template(text).substitute(values)
