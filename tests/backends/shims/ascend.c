/* libascendcl.so, with the rt functions that it brings along: contexts per thread, copies that say how much room
   there is, answers by number. */
#include "machine.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 100000, UNINITIALIZED = 100001, REPEATED = 100002, RT_INVALID = 107000, BAD_DEVICE = 107001,
       NO_CONTEXT = 107002, BAD_STREAM = 107003, BAD_TIMESTAMP = 107006, NO_DEVICE_MEMORY = 207001,
       CORE_EXCEPTION = 507015, INTERNAL = 500000 };
static int num_inits;
static __thread int current = -1;
static __thread char words[256];
static __thread char last[256];

static int failed(int code, const char *message) {
    snprintf(words, sizeof words, "EE%d: %s", code, message);
    return code;
}
static int context(void) {
    if (!num_inits) return failed(UNINITIALIZED, "aclInit was not called");
    if (current < 0) return failed(NO_CONTEXT, "the context is a null pointer");
    return OK;
}
#define IN_CONTEXT do { int code_ = context(); if (code_) return code_; } while (0)

int aclInit(const char *config) {
    shim_note("aclInit %s", config ? config : "null");
    if (config) return failed(INVALID, "no such file");
    return num_inits++ ? REPEATED : OK;
}
int aclFinalize(void) { num_inits = 0; return OK; }
const char *aclGetRecentErrMsg(void) { /* once, and nothing when nothing happened */
    if (!words[0]) return NULL;
    memcpy(last, words, sizeof last);
    words[0] = 0;
    return last;
}
int aclrtGetDeviceCount(uint32_t *count) {
    if (!num_inits) return failed(UNINITIALIZED, "aclInit was not called");
    *count = 2;
    return OK;
}
int aclrtSetDevice(int32_t device) {
    shim_note("aclrtSetDevice %d", device);
    if (!num_inits) return failed(UNINITIALIZED, "aclInit was not called");
    if (device < 0 || device > 1) return failed(BAD_DEVICE, "no such device");
    current = device;
    return OK;
}
int aclrtGetDevice(int32_t *device) { IN_CONTEXT; *device = current; return OK; }
int aclrtSynchronizeDevice(void) {
    IN_CONTEXT;
    shim_device_synchronize(current);
    return shim_failed() ? failed(CORE_EXCEPTION, "the aicore execution is abnormal") : OK;
}
int aclrtMalloc(void **p, size_t n, int policy) {
    IN_CONTEXT;
    shim_note("aclrtMalloc %zu policy %d", n, policy);
    if (!n || policy < 0 || policy > 7) return failed(RT_INVALID, "size or policy is not valid");
    *p = shim_allocate(current, n + 32, 64);
    return *p ? OK : failed(NO_DEVICE_MEMORY, "alloc device memory failed");
}
int aclrtFree(void *p) { IN_CONTEXT; return shim_free(p) ? failed(RT_INVALID, "not allocated here") : OK; }
int aclrtMallocHost(void **p, size_t n) { IN_CONTEXT; shim_note("aclrtMallocHost %zu", n); *p = shim_allocate_host(n); return OK; }
int aclrtFreeHost(void *p) { IN_CONTEXT; return shim_free_host(p) ? failed(RT_INVALID, "not allocated here") : OK; }
static int direction(int kind) { return kind >= 0 && kind <= 3 ? kind : -1; }
int aclrtMemcpy(void *dst, size_t room, const void *src, size_t n, int kind) {
    IN_CONTEXT;
    shim_note("aclrtMemcpy %zu of %zu kind %d", n, room, kind);
    if (room < n) return failed(RT_INVALID, "destMax is smaller than count");
    if (direction(kind) < 0) return failed(RT_INVALID, "kind is not valid");
    return shim_copy(dst, src, n, direction(kind)) ? failed(RT_INVALID, "an address is not valid") : OK;
}
int aclrtMemcpyAsync(void *dst, size_t room, const void *src, size_t n, int kind, shim_stream *stream) {
    IN_CONTEXT;
    shim_note("aclrtMemcpyAsync %zu of %zu kind %d", n, room, kind);
    if (room < n) return failed(RT_INVALID, "destMax is smaller than count");
    if (direction(kind) < 0) return failed(RT_INVALID, "kind is not valid");
    if (!shim_stream_is(stream) || shim_stream_device(stream) != current) return failed(BAD_STREAM, "stream is not of this context");
    return shim_copy_async(stream, dst, src, n, direction(kind)) ? failed(RT_INVALID, "an address is not valid") : OK;
}
int aclrtMemsetAsync(void *p, size_t room, int32_t value, size_t n, shim_stream *stream) {
    IN_CONTEXT;
    shim_note("aclrtMemsetAsync %d %zu of %zu", value, n, room);
    if (room < n) return failed(RT_INVALID, "maxCount is smaller than count");
    if (!shim_stream_is(stream)) return failed(BAD_STREAM, "no such stream");
    return shim_fill_async(stream, p, value, n) ? failed(RT_INVALID, "an address is not valid") : OK;
}
int aclrtGetMemInfo(int attribute, size_t *available, size_t *total) {
    IN_CONTEXT;
    shim_note("aclrtGetMemInfo %d", attribute);
    if (attribute != 1) { *available = *total = 0; return OK; } /* HBM; the rest has none */
    shim_memory(current, available, total);
    return OK;
}
int aclrtCreateStream(shim_stream **stream) { IN_CONTEXT; *stream = shim_stream_create(current); return OK; }
int aclrtDestroyStream(shim_stream *stream) { IN_CONTEXT; return shim_stream_destroy(stream) ? failed(BAD_STREAM, "no such stream") : OK; }
int aclrtSynchronizeStream(shim_stream *stream) {
    IN_CONTEXT;
    shim_note("aclrtSynchronizeStream");
    if (shim_stream_synchronize(stream)) return failed(BAD_STREAM, "no such stream");
    return shim_failed() ? failed(CORE_EXCEPTION, "the aicore execution is abnormal") : OK;
}
int aclrtStreamQuery(shim_stream *stream, int32_t *status) { /* 0 complete, 1 not ready */
    IN_CONTEXT;
    if (!shim_stream_is(stream)) return failed(BAD_STREAM, "no such stream");
    *status = shim_stream_query(stream) ? 0 : 1;
    return OK;
}
int aclrtStreamWaitEvent(shim_stream *stream, shim_event *event) {
    IN_CONTEXT;
    if (!shim_stream_is(stream) || !shim_event_is(event)) return failed(BAD_STREAM, "no such stream or event");
    return shim_stream_wait(stream, event) ? failed(BAD_STREAM, "no such stream") : OK;
}
int aclrtCreateEvent(shim_event **event) { IN_CONTEXT; *event = shim_event_create(); return OK; }
int aclrtDestroyEvent(shim_event *event) { IN_CONTEXT; return shim_event_destroy(event) ? failed(RT_INVALID, "no such event") : OK; }
int aclrtRecordEvent(shim_event *event, shim_stream *stream) {
    IN_CONTEXT;
    return shim_event_record(event, stream) ? failed(RT_INVALID, "no such event or stream") : OK;
}
int aclrtQueryEventStatus(shim_event *event, int32_t *status) { /* 0 not ready, 1 complete */
    IN_CONTEXT;
    if (!shim_event_is(event)) return failed(RT_INVALID, "no such event");
    *status = shim_event_query(event) ? 1 : 0;
    return OK;
}
int aclrtSynchronizeEvent(shim_event *event) { IN_CONTEXT; return shim_event_synchronize(event) ? failed(RT_INVALID, "no such event") : OK; }
int aclrtEventElapsedTime(float *ms, shim_event *start, shim_event *end) {
    IN_CONTEXT;
    if (!shim_event_is(start) || !shim_event_is(end)) return failed(RT_INVALID, "no such event");
    return shim_event_elapsed(ms, start, end) ? failed(BAD_TIMESTAMP, "the event was not recorded") : OK;
}
int aclrtGetDeviceInfo(uint32_t device, int attribute, int64_t *value) {
    if (device > 1 || attribute != 101) return failed(RT_INVALID, "attribute is not valid");
    *value = 24;
    return OK;
}
const char *aclrtGetSocName(void) { return "Ascend910B3"; }

/* --- kernels: a registered binary, a function under an address of the caller's, one packed structure --- */
typedef struct { uint32_t magic, version; const void *data; uint64_t length; } rtDevBinary_t;
struct stub { const void *address; char *image; struct stub *next; };
static struct stub *stubs;

int rtDevBinaryRegister(const rtDevBinary_t *binary, void **handle) {
    char name[256];
    shim_note("rtDevBinaryRegister magic %x version %u length %llu", binary->magic, binary->version, (unsigned long long)binary->length);
    if (binary->magic != 0x43554245 && binary->magic != 0x41415246) return RT_INVALID;
    char *copied = calloc(1, binary->length + 1);
    memcpy(copied, binary->data, binary->length);
    if (!shim_image_name(copied, name)) return RT_INVALID;
    *handle = copied;
    return OK;
}
int rtFunctionRegister(void *binary, const void *stub, const char *stub_name, const void *name, uint32_t mode) {
    char known[256];
    shim_note("rtFunctionRegister %s %s mode %u", stub_name, (const char *)name, mode);
    if (!shim_image_name(binary, known) || strcmp(known, name) || mode) return RT_INVALID;
    for (struct stub *s = stubs; s; s = s->next) if (s->address == stub) return RT_INVALID; /* taken */
    struct stub *made = malloc(sizeof *made);
    *made = (struct stub){stub, binary, stubs};
    stubs = made;
    return OK;
}
int rtGetC2cCtrlAddr(uint64_t *address, uint32_t *length) { *address = 0xFF75; *length = 8; return OK; }
int rtKernelLaunch(const void *stub, uint32_t blocks, void *arguments, uint32_t size, void *memory, shim_stream *stream) {
    IN_CONTEXT;
    uint32_t grid[3] = {blocks, 1, 1};
    shim_note("rtKernelLaunch blocks %u size %u", blocks, size);
    if (memory || !blocks || blocks > 65535 || !shim_stream_is(stream)) return RT_INVALID;
    for (struct stub *s = stubs; s; s = s->next)
        if (s->address == stub) return shim_launch(stream, s->image, grid, 1, arguments, size) ? RT_INVALID : OK;
    return RT_INVALID;
}
