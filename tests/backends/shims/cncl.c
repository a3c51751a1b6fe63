/* libcncl.so: devices and ranks come as arrays, and the identifier has a hash after its bytes. */
#include "machine.h"
#include <string.h>

typedef struct { char data[128]; uint64_t hash; } cnclCliqueId;
/* CNCL's numbers: half 0x10, bfloat16 0x11, float 0x12, int8 0x20 ..., uint8 0x30 ...; no double */
static int kind_of(int dtype) {
    switch (dtype) {
    case 0x10: return SHIM_F16; case 0x11: return SHIM_BF16; case 0x12: return SHIM_F32;
    case 0x20: return SHIM_I8; case 0x21: return SHIM_I16; case 0x22: return SHIM_I32; case 0x23: return SHIM_I64;
    case 0x30: return SHIM_U8; case 0x31: return SHIM_U16; case 0x32: return SHIM_U32; case 0x33: return SHIM_U64;
    default: return -1;
    }
}
enum { OK = 0, ARGUMENT = 7, UNSUPPORTED = 0x11 };
int cnrtGetDevice(int *);
int cnclGetCliqueId(cnclCliqueId *id) { static int count; memset(id, 0, sizeof *id); id->data[5] = (char)++count; id->hash = 42; return OK; }
int cnclInitComms(shim_comm **comms, int count, const int *devices, const int *ranks, int num_ranks, const cnclCliqueId *id) {
    int current;
    cnrtGetDevice(&current);
    if (count != 1 || !id || id->hash != 42 || devices[0] != current) return ARGUMENT;
    *comms = shim_join(id, sizeof *id, num_ranks, ranks[0], current);
    return *comms ? OK : ARGUMENT;
}
int cnclFreeComm(shim_comm *comm) { return shim_leave(comm) ? ARGUMENT : OK; }
#define COLLECTIVE(what, op, root) \
    (kind_of(dtype) < 0 ? UNSUPPORTED : shim_collective(comm, what, send, recv, n, kind_of(dtype), op, root, queue) ? ARGUMENT : OK)
int cnclAllReduce(const void *send, void *recv, size_t n, int dtype, int op, shim_comm *comm, shim_stream *queue) { return COLLECTIVE(SHIM_ALL_REDUCE, op, 0); }
int cnclAllGather(const void *send, void *recv, size_t n, int dtype, shim_comm *comm, shim_stream *queue) { return COLLECTIVE(SHIM_ALL_GATHER, 0, 0); }
int cnclReduceScatter(const void *send, void *recv, size_t n, int dtype, int op, shim_comm *comm, shim_stream *queue) { return COLLECTIVE(SHIM_REDUCE_SCATTER, op, 0); }
int cnclBroadcast(const void *send, void *recv, size_t n, int dtype, int root, shim_comm *comm, shim_stream *queue) { return COLLECTIVE(SHIM_BROADCAST, 0, root); }
const char *cnclGetErrorStr(int code) { return code == ARGUMENT ? "argument" : "error"; }
