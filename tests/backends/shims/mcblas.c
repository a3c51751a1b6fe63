/* libmcblas.so: cuBLAS's numbers and order; matrices count columns first. */
#include "machine.h"
#include <stdlib.h>

enum { OK = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
struct handle { shim_stream *stream; int magic; };
struct product {
    int ta, tb, m, n, k, lda, ldb, ldc, count, in, out;
    long long a_step, b_step, c_step;
    const char *a, *b;
    char *c;
};
static double get(int type, const char *at, size_t i) {
    if (type == 0) return ((const float *)at)[i];
    if (type == 1) return ((const double *)at)[i];
    if (type == 2) return ((const _Float16 *)at)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)at)[i] << 16;
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
static void put(int type, char *at, size_t i, double x) {
    if (type == 0) ((float *)at)[i] = (float)x;
    else if (type == 1) ((double *)at)[i] = x;
    else if (type == 2) ((_Float16 *)at)[i] = (_Float16)x;
    else {
        float f = (float)x;
        uint32_t bits;
        __builtin_memcpy(&bits, &f, 4);
        bits += 0x7FFF + ((bits >> 16) & 1);
        ((uint16_t *)at)[i] = bits >> 16;
    }
}
static void multiply(void *argument) {
    struct product *p = argument;
    for (int z = 0; z < p->count; z++)
        for (int j = 0; j < p->n; j++)
            for (int i = 0; i < p->m; i++) {
                double total = 0;
                for (int q = 0; q < p->k; q++)
                    total += get(p->in, p->a, z * p->a_step + (p->ta ? q + (size_t)i * p->lda : i + (size_t)q * p->lda)) *
                             get(p->in, p->b, z * p->b_step + (p->tb ? j + (size_t)q * p->ldb : q + (size_t)j * p->ldb));
                put(p->out, p->c, z * p->c_step + i + (size_t)j * p->ldc, total);
            }
    free(p);
}
int mcblasCreate(struct handle **handle) {
    *handle = calloc(1, sizeof **handle);
    (*handle)->magic = 77;
    return OK;
}
int mcblasDestroy(struct handle *handle) { free(handle); return OK; }
int mcblasSetStream(struct handle *handle, shim_stream *stream) {
    if (!handle || handle->magic != 77 || !shim_stream_is(stream)) return NOT_INITIALIZED;
    handle->stream = stream;
    return OK;
}
int mcblasGemmStridedBatchedEx(struct handle *handle, int ta, int tb, int m, int n, int k, const void *alpha,
                               const void *a, int a_type, int lda, long long a_step, const void *b, int b_type,
                               int ldb, long long b_step, const void *beta, void *c, int c_type, int ldc,
                               long long c_step, int count, int compute, int algorithm) {
    shim_note("mcblasGemmStridedBatchedEx %d %d %d %d %d types %d %d compute %d", ta, tb, m, n, k, a_type, c_type, compute);
    if (!handle || handle->magic != 77) return NOT_INITIALIZED;
    if ((ta | tb) & ~1 || a_type != b_type || algorithm != -1 || lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m)
        return INVALID_VALUE;
    if (compute != (c_type == 1 ? 70 : 68)) return NOT_SUPPORTED;
    double one = compute == 70 ? *(const double *)alpha : *(const float *)alpha;
    double zero = compute == 70 ? *(const double *)beta : *(const float *)beta;
    if (one != 1 || zero != 0) return NOT_SUPPORTED;
    struct product *p = malloc(sizeof *p);
    *p = (struct product){ta, tb, m, n, k, lda, ldb, ldc, count, a_type, c_type, a_step, b_step, c_step,
                          shim_untagged(a, 1), shim_untagged(b, 1), shim_untagged(c, 1)};
    if (!p->a || !p->b || !p->c) return INVALID_VALUE;
    return shim_stream_call(handle->stream, multiply, p) ? NOT_INITIALIZED : OK;
}
