/* libmcruntime.so: CUDA's functions under the prefix mc. */
#include "machine.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, BAD_DEVICE = 101, BAD_DIRECTION = 21, BAD_HANDLE = 400,
       NOT_READY = 600, ILLEGAL_ADDRESS = 700 };
static __thread int current;

__attribute__((constructor)) static void loaded(void) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    shim_note("loaded CUDA_VISIBLE_DEVICES=%s", visible ? visible : "");
}
int mcGetDeviceCount(int *count) { shim_note("mcGetDeviceCount"); *count = 2; return OK; }
int mcSetDevice(int device) { shim_note("mcSetDevice %d", device); if (device < 0 || device > 1) return BAD_DEVICE; current = device; return OK; }
int mcGetDevice(int *device) { *device = current; return OK; }
int mcDeviceSynchronize(void) { shim_device_synchronize(current); return shim_failed() ? ILLEGAL_ADDRESS : OK; }
int mcMalloc(void **p, size_t n) {
    shim_note("mcMalloc %zu", n);
    if (!p) return INVALID;
    *p = n ? shim_allocate(current, n, 256) : NULL;
    return *p || !n ? OK : NO_MEMORY;
}
int mcFree(void *p) { shim_note("mcFree"); return !p || !shim_free(p) ? OK : INVALID; }
int mcMallocHost(void **p, size_t n, unsigned flags) {
    shim_note("mcMallocHost %zu flags %u", n, flags);
    if (flags) return INVALID;
    *p = shim_allocate_host(n);
    return OK;
}
int mcFreeHost(void *p) { return shim_free_host(p) ? INVALID : OK; }
static int direction(int kind) { return kind >= 0 && kind <= 3 ? kind : -1; } /* H2H, H2D, D2H, D2D as here */
int mcMemcpy(void *dst, const void *src, size_t n, int kind) {
    shim_note("mcMemcpy %zu kind %d", n, kind);
    if (direction(kind) < 0) return BAD_DIRECTION;
    return shim_copy(dst, src, n, direction(kind)) ? INVALID : OK;
}
int mcMemcpyAsync(void *dst, const void *src, size_t n, int kind, shim_stream *stream) {
    shim_note("mcMemcpyAsync %zu kind %d", n, kind);
    if (direction(kind) < 0) return BAD_DIRECTION;
    if (!shim_stream_is(stream)) return BAD_HANDLE;
    return shim_copy_async(stream, dst, src, n, direction(kind)) ? INVALID : OK;
}
int mcMemsetAsync(void *p, int value, size_t n, shim_stream *stream) {
    shim_note("mcMemsetAsync %d %zu", value, n);
    if (!shim_stream_is(stream)) return BAD_HANDLE;
    return shim_fill_async(stream, p, value, n) ? INVALID : OK;
}
int mcMemGetInfo(size_t *available, size_t *total) { shim_memory(current, available, total); return OK; }
int mcStreamCreateWithFlags(shim_stream **stream, unsigned flags) {
    shim_note("mcStreamCreateWithFlags %u", flags);
    if (flags > 1) return INVALID;
    *stream = shim_stream_create(current);
    return OK;
}
int mcStreamDestroy(shim_stream *stream) { return shim_stream_destroy(stream) ? BAD_HANDLE : OK; }
int mcStreamSynchronize(shim_stream *stream) {
    shim_note("mcStreamSynchronize");
    if (shim_stream_synchronize(stream)) return BAD_HANDLE;
    return shim_failed() ? ILLEGAL_ADDRESS : OK;
}
int mcStreamQuery(shim_stream *stream) {
    if (!shim_stream_is(stream)) return BAD_HANDLE;
    return shim_stream_query(stream) ? OK : NOT_READY;
}
int mcStreamWaitEvent(shim_stream *stream, shim_event *event, unsigned flags) {
    shim_note("mcStreamWaitEvent %u", flags);
    if (flags || !shim_stream_is(stream) || !shim_event_is(event)) return BAD_HANDLE;
    return shim_stream_wait(stream, event) ? BAD_HANDLE : OK;
}
int mcEventCreate(shim_event **event) { *event = shim_event_create(); return OK; }
int mcEventDestroy(shim_event *event) { return shim_event_destroy(event) ? BAD_HANDLE : OK; }
int mcEventRecord(shim_event *event, shim_stream *stream) { return shim_event_record(event, stream) ? BAD_HANDLE : OK; }
int mcEventQuery(shim_event *event) {
    if (!shim_event_is(event)) return BAD_HANDLE;
    return shim_event_query(event) ? OK : NOT_READY;
}
int mcEventSynchronize(shim_event *event) { return shim_event_synchronize(event) ? BAD_HANDLE : OK; }
int mcEventElapsedTime(float *ms, shim_event *start, shim_event *end) {
    if (!shim_event_is(start) || !shim_event_is(end)) return BAD_HANDLE;
    return shim_event_elapsed(ms, start, end) ? NOT_READY : OK;
}
const char *mcGetErrorString(int code) {
    switch (code) {
    case OK: return "no error";
    case INVALID: return "invalid argument";
    case NO_MEMORY: return "out of memory";
    case BAD_DEVICE: return "invalid device ordinal";
    case BAD_DIRECTION: return "invalid copy direction for memcpy";
    case BAD_HANDLE: return "invalid resource handle";
    case NOT_READY: return "device not ready";
    case ILLEGAL_ADDRESS: return "an illegal memory access was encountered";
    default: return "unknown error";
    }
}
int mcDeviceGetName(char *name, int room, int device) { shim_note("mcDeviceGetName %d", room); snprintf(name, room, "MXC500 %d", device); return OK; }
int mcDeviceGetAttribute(int *value, int attribute, int device) {
    if (device < 0 || device > 1) return BAD_DEVICE;
    switch (attribute) {
    case 0: *value = 1024; return OK;
    case 9: case 10: *value = 64; return OK;
    case 16: *value = 104; return OK;
    case 21: *value = 10; return OK;
    case 22: *value = 0; return OK;
    default: return INVALID;
    }
}
/* --- kernels --- */
int mcModuleLoadData(void **module, const void *image) {
    char name[256];
    shim_note("mcModuleLoadData");
    if (!shim_image_name(image, name)) return 200; /* invalid image */
    *module = strdup(image);
    return OK;
}
int mcModuleGetFunction(void **function, void *module, const char *wanted) {
    char name[256];
    shim_image_name(module, name);
    shim_note("mcModuleGetFunction %s", wanted);
    if (strcmp(name, wanted)) return 500; /* not found */
    *function = module;
    return OK;
}
int mcModuleLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                         unsigned shared, shim_stream *stream, void **arguments, void **extra) {
    size_t sizes[64];
    uint64_t slots[64] = {0};
    uint32_t grid[3] = {gx, gy, gz};
    shim_note("mcModuleLaunchKernel grid %u,%u,%u block %u,%u,%u shared %u", gx, gy, gz, bx, by, bz, shared);
    if (extra || !gx || !gy || !gz || by != 1 || bz != 1 || bx % 64 || bx > 512 || !shim_stream_is(stream)) return INVALID;
    int count = shim_image_sizes(function, sizes);
    if (count < 0) return INVALID;
    for (int i = 0; i < count; i++) memcpy(&slots[i], arguments[i], sizes[i]);
    return shim_launch(stream, function, grid, bx, slots, 8 * count) ? INVALID : OK;
}
