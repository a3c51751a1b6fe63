/* libcnrt.so: directions have other numbers, the queue comes before the direction and after the notifier, times come
   back last. */
#include "machine.h"

enum { OK = 0, NOT_READY = 1, NO_DEVICE = 100004, BAD_DEVICE = 100005, INVALID = 100006, BAD_HANDLE = 100014,
       NO_MEMORY = 100100, BAD_DIRECTION = 632013 };
static __thread int current;

int cnrtGetDeviceCount(unsigned *count) { *count = 2; return OK; }
int cnrtSetDevice(int device) { if (device < 0 || device > 1) return BAD_DEVICE; current = device; return OK; }
int cnrtGetDevice(int *device) { *device = current; return OK; }
int cnrtSyncDevice(void) { shim_device_synchronize(current); return OK; }
int cnrtMalloc(void **p, size_t n) { *p = n ? shim_allocate(current, n, 256) : NULL; return *p ? OK : n ? NO_MEMORY : INVALID; }
int cnrtFree(void *p) { return shim_free(p) ? INVALID : OK; }
static int direction(int kind) { /* H2D 0, D2D 1, D2H 2, H2H 3 */
    static const int known[] = {SHIM_H2D, SHIM_D2D, SHIM_D2H, SHIM_H2H};
    return kind >= 0 && kind <= 3 ? known[kind] : -1;
}
int cnrtMemcpy(void *dst, void *src, size_t n, int kind) {
    shim_note("cnrtMemcpy kind %d", kind);
    if (direction(kind) < 0) return BAD_DIRECTION;
    return shim_copy(dst, src, n, direction(kind)) ? INVALID : OK;
}
int cnrtMemcpyAsync_V2(void *dst, void *src, size_t n, shim_stream *queue, int kind) {
    shim_note("cnrtMemcpyAsync_V2 kind %d", kind);
    if (!shim_stream_is(queue)) return BAD_HANDLE;
    if (direction(kind) < 0) return BAD_DIRECTION;
    return shim_copy_async(queue, dst, src, n, direction(kind)) ? INVALID : OK;
}
int cnrtQueueCreate(shim_stream **queue) { *queue = shim_stream_create(current); return OK; }
int cnrtQueueDestroy(shim_stream *queue) { return shim_stream_destroy(queue) ? BAD_HANDLE : OK; }
int cnrtQueueSync(shim_stream *queue) { return shim_stream_synchronize(queue) ? BAD_HANDLE : OK; }
int cnrtQueueQuery(shim_stream *queue) { return !shim_stream_is(queue) ? BAD_HANDLE : shim_stream_query(queue) ? OK : NOT_READY; }
int cnrtQueueWaitNotifier(shim_event *notifier, shim_stream *queue, unsigned flags) {
    if (flags || !shim_event_is(notifier) || !shim_stream_is(queue)) return BAD_HANDLE;
    return shim_stream_wait(queue, notifier) ? BAD_HANDLE : OK;
}
int cnrtNotifierCreate(shim_event **notifier) { *notifier = shim_event_create(); return OK; }
int cnrtNotifierDestroy(shim_event *notifier) { return shim_event_destroy(notifier) ? BAD_HANDLE : OK; }
int cnrtPlaceNotifier(shim_event *notifier, shim_stream *queue) { return shim_event_record(notifier, queue) ? BAD_HANDLE : OK; }
int cnrtQueryNotifier(shim_event *notifier) { return !shim_event_is(notifier) ? BAD_HANDLE : shim_event_query(notifier) ? OK : NOT_READY; }
int cnrtWaitNotifier(shim_event *notifier) { return shim_event_synchronize(notifier) ? BAD_HANDLE : OK; }
int cnrtNotifierElapsedTime(shim_event *start, shim_event *end, float *ms) {
    if (!shim_event_is(start) || !shim_event_is(end)) return BAD_HANDLE;
    return shim_event_elapsed(ms, start, end) ? NOT_READY : OK;
}
const char *cnrtGetErrorStr(int code) { return code == NO_MEMORY ? "no memory" : code == BAD_DIRECTION ? "bad direction" : "error"; }
