/* libxpurt.so: three arguments to allocate, directions of its own, negative errors, and no function for their words,
   for a fill, for a query, for the device as a whole or for times between events. */
#include "machine.h"

enum { OK = 0, INVALID = -707, NO_MEMORY = -705, NO_DEVICE = -703 };
static __thread int current;

int xpu_device_count(int *count) { *count = 1; return OK; }
int xpu_set_device(int device) { if (device) return -701; current = device; return OK; }
int xpu_malloc(void **p, uint64_t n, int kind) {
    shim_note("xpu_malloc kind %d", kind);
    if (!n || kind) return INVALID;
    *p = shim_allocate(current, n, 64);
    return *p ? OK : NO_MEMORY;
}
int xpu_free(void *p) { return shim_free(p) ? INVALID : OK; }
static int direction(int kind) { /* D2H 0, H2D 1, D2D 2 */
    static const int known[] = {SHIM_D2H, SHIM_H2D, SHIM_D2D};
    return kind >= 0 && kind <= 2 ? known[kind] : -1;
}
int xpu_memcpy(void *dst, const void *src, uint64_t n, int kind) {
    return direction(kind) < 0 || shim_copy(dst, src, n, direction(kind)) ? INVALID : OK;
}
int xpu_memcpy_async(void *dst, const void *src, uint64_t n, int kind, shim_stream *stream) {
    return direction(kind) < 0 || shim_copy_async(stream, dst, src, n, direction(kind)) ? INVALID : OK;
}
int xpu_stream_create(shim_stream **stream) { *stream = shim_stream_create(current); return OK; }
int xpu_stream_destroy(shim_stream *stream) { return shim_stream_destroy(stream) ? INVALID : OK; }
int xpu_wait(shim_stream *stream) { return shim_stream_synchronize(stream) ? INVALID : OK; }
