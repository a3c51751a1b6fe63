/* libmccl.so: NCCL's functions under the prefix mccl; the identifier goes by value. */
#include "machine.h"
#include <string.h>

typedef struct { char internal[128]; } mcclUniqueId;
enum { OK = 0, INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };
static const int kinds[] = {SHIM_I8, SHIM_U8, SHIM_I32, SHIM_U32, SHIM_I64, SHIM_U64, SHIM_F16, SHIM_F32, SHIM_F64, SHIM_BF16};
static int bad(int dtype) { return dtype < 0 || dtype > 9; }
int mcSetDevice(int);
int mcGetDevice(int *);

int mcclGetUniqueId(mcclUniqueId *id) { /* zeros inside, as real ones have */
    static int count;
    memset(id, 0, sizeof *id);
    id->internal[0] = 7;
    id->internal[64] = (char)++count;
    id->internal[127] = 9;
    return OK;
}
int mcclCommInitRank(shim_comm **comm, int num_ranks, mcclUniqueId id, int rank) {
    int device;
    mcGetDevice(&device);
    shim_note("mcclCommInitRank %d of %d, id %d..%d..%d, device %d", rank, num_ranks, id.internal[0], id.internal[64], id.internal[127], device);
    if (id.internal[0] != 7 || id.internal[127] != 9) return INVALID_ARGUMENT;
    *comm = shim_join(&id, sizeof id, num_ranks, rank, device);
    return *comm ? OK : INVALID_USAGE;
}
/* What tells this library from Moore Threads' of the same name. */
int mcclCommMcDevice(shim_comm *comm, int *device) { return comm && device ? mcGetDevice(device) : INVALID_ARGUMENT; }
int mcclCommDestroy(shim_comm *comm) { return shim_leave(comm) ? INVALID_ARGUMENT : OK; }
#define CALL(name, ...) int name(__VA_ARGS__)
CALL(mcclAllReduce, const void *send, void *recv, size_t n, int dtype, int op, shim_comm *comm, shim_stream *stream) {
    shim_note("mcclAllReduce %zu dtype %d op %d", n, dtype, op);
    if (bad(dtype) || op < 0 || op > 4) return INVALID_ARGUMENT;
    return shim_collective(comm, SHIM_ALL_REDUCE, send, recv, n, kinds[dtype], op, 0, stream) ? INVALID_ARGUMENT : OK;
}
CALL(mcclAllGather, const void *send, void *recv, size_t n, int dtype, shim_comm *comm, shim_stream *stream) {
    if (bad(dtype)) return INVALID_ARGUMENT;
    return shim_collective(comm, SHIM_ALL_GATHER, send, recv, n, kinds[dtype], 0, 0, stream) ? INVALID_ARGUMENT : OK;
}
CALL(mcclReduceScatter, const void *send, void *recv, size_t n, int dtype, int op, shim_comm *comm, shim_stream *stream) {
    if (bad(dtype) || op < 0 || op > 4) return INVALID_ARGUMENT;
    return shim_collective(comm, SHIM_REDUCE_SCATTER, send, recv, n, kinds[dtype], op, 0, stream) ? INVALID_ARGUMENT : OK;
}
CALL(mcclBroadcast, const void *send, void *recv, size_t n, int dtype, int root, shim_comm *comm, shim_stream *stream) {
    if (bad(dtype)) return INVALID_ARGUMENT;
    return shim_collective(comm, SHIM_BROADCAST, send, recv, n, kinds[dtype], 0, root, stream) ? INVALID_ARGUMENT : OK;
}
CALL(mcclSend, const void *send, size_t n, int dtype, int peer, shim_comm *comm, shim_stream *stream) {
    return bad(dtype) || shim_send(comm, send, n, kinds[dtype], peer, stream) ? INVALID_ARGUMENT : OK;
}
CALL(mcclRecv, void *recv, size_t n, int dtype, int peer, shim_comm *comm, shim_stream *stream) {
    return bad(dtype) || shim_recv(comm, recv, n, kinds[dtype], peer, stream) ? INVALID_ARGUMENT : OK;
}
int mcclGroupStart(void) { return shim_group_start(); }
int mcclGroupEnd(void) { return shim_group_end() ? INVALID_USAGE : OK; }
const char *mcclGetErrorString(int code) { return code == INVALID_ARGUMENT ? "invalid argument" : code ? "invalid usage" : "no error"; }
