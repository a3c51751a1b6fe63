/* libhccl.so: the communicator comes last, the identifier is long and goes by pointer, broadcast is in place. */
#include "machine.h"
#include <string.h>

typedef struct { char internal[4108]; } HcclRootInfo;
enum { OK = 0, PARAMETER = 1, POINTER = 2, NOT_SUPPORTED = 5 };
/* by HcclDataType: int8 int16 int32 fp16 fp32 int64 uint64 uint8 uint16 uint32 fp64 bf16 */
static const int kinds[] = {SHIM_I8, SHIM_I16, SHIM_I32, SHIM_F16, SHIM_F32, SHIM_I64, SHIM_U64, SHIM_U8, SHIM_U16, SHIM_U32, SHIM_F64, SHIM_BF16};
static int bad(int dtype) { return dtype < 0 || dtype > 11; }
int aclrtGetDevice(int32_t *);

int HcclGetRootInfo(HcclRootInfo *id) {
    static int count;
    memset(id, 0, sizeof *id);
    id->internal[1] = (char)++count;
    id->internal[4107] = 3;
    return OK;
}
int HcclCommInitRootInfo(uint32_t num_ranks, const HcclRootInfo *id, uint32_t rank, shim_comm **comm) {
    int32_t device;
    if (aclrtGetDevice(&device)) return PARAMETER;
    shim_note("HcclCommInitRootInfo %u of %u, id ends %d", rank, num_ranks, id->internal[4107]);
    if (id->internal[4107] != 3) return PARAMETER;
    *comm = shim_join(id, sizeof *id, num_ranks, rank, device);
    return *comm ? OK : PARAMETER;
}
int HcclCommDestroy(shim_comm *comm) { return shim_leave(comm) ? PARAMETER : OK; }
int HcclAllReduce(void *send, void *recv, uint64_t n, int dtype, int op, shim_comm *comm, shim_stream *stream) {
    shim_note("HcclAllReduce %llu dtype %d op %d", (unsigned long long)n, dtype, op);
    if (bad(dtype) || op < 0 || op > 3) return NOT_SUPPORTED;
    return shim_collective(comm, SHIM_ALL_REDUCE, send, recv, n, kinds[dtype], op, 0, stream) ? PARAMETER : OK;
}
int HcclAllGather(void *send, void *recv, uint64_t n, int dtype, shim_comm *comm, shim_stream *stream) {
    return bad(dtype) || shim_collective(comm, SHIM_ALL_GATHER, send, recv, n, kinds[dtype], 0, 0, stream) ? PARAMETER : OK;
}
int HcclReduceScatter(void *send, void *recv, uint64_t n, int dtype, int op, shim_comm *comm, shim_stream *stream) {
    if (bad(dtype) || op < 0 || op > 3) return NOT_SUPPORTED;
    return shim_collective(comm, SHIM_REDUCE_SCATTER, send, recv, n, kinds[dtype], op, 0, stream) ? PARAMETER : OK;
}
int HcclBroadcast(void *buffer, uint64_t n, int dtype, uint32_t root, shim_comm *comm, shim_stream *stream) {
    shim_note("HcclBroadcast %llu root %u", (unsigned long long)n, root);
    return bad(dtype) || shim_collective(comm, SHIM_BROADCAST, buffer, buffer, n, kinds[dtype], 0, root, stream) ? PARAMETER : OK;
}
int HcclSend(void *send, uint64_t n, int dtype, uint32_t peer, shim_comm *comm, shim_stream *stream) {
    return bad(dtype) || shim_send(comm, send, n, kinds[dtype], peer, stream) ? PARAMETER : OK;
}
int HcclRecv(void *recv, uint64_t n, int dtype, uint32_t peer, shim_comm *comm, shim_stream *stream) {
    return bad(dtype) || shim_recv(comm, recv, n, kinds[dtype], peer, stream) ? PARAMETER : OK;
}
const char *HcclGetErrorString(int code) { return code == PARAMETER ? "parameter error" : code ? "not supported" : "no error"; }
