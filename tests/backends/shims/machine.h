/* A device made of host memory, for stand-ins of vendors' libraries. Hand-written from what is known of the
   vendors, and from nothing in infini.

   Addresses of the device carry a tag, so an address of the host where one of the device belongs (or the other
   way round) is found and never works by accident. Work of a stream waits until somebody waits for the stream,
   so a missing wait shows. Fresh memory is filled with junk. */
#ifndef SHIM_MACHINE_H
#define SHIM_MACHINE_H
#include <stddef.h>
#include <stdint.h>

#define SHIM_TAG 0x5A00000000000000ull
#define SHIM_TAG_MASK 0xFF00000000000000ull
#define SHIM_JUNK 0xCD
#define SHIM_DEVICES 3

enum shim_direction { SHIM_H2H, SHIM_H2D, SHIM_D2H, SHIM_D2D };
typedef struct shim_stream shim_stream;
typedef struct shim_event shim_event;
typedef void (*shim_work)(void *argument);
/* What computes a kernel: gets the text of its image, the grid, the threads, and the bytes of its arguments. */
typedef int (*shim_launcher)(const char *image, const uint32_t grid[3], uint32_t threads, const void *arguments,
                             size_t size);

/* for tests */
const char *shim_log(void);
void shim_reset(void);
void shim_set_limit(size_t bytes);
void shim_set_launcher(shim_launcher launcher);
size_t shim_num_blocks(void);
size_t shim_num_streams(void);
size_t shim_num_events(void);

/* for the stand-ins; each locks the machine itself */
void shim_note(const char *format, ...);
void *shim_allocate(int device, size_t n, size_t alignment); /* NULL when memory is short */
int shim_free(void *tagged);                                 /* 0, or -1 when it is no block */
void *shim_allocate_host(size_t n);
int shim_free_host(void *host);
void shim_memory(int device, size_t *available, size_t *total);
/* 0, or -1 when an address is not what the direction says, or leaves its block */
int shim_copy(void *target, const void *source, size_t n, enum shim_direction direction);
int shim_copy_async(shim_stream *stream, void *target, const void *source, size_t n, enum shim_direction direction);
int shim_fill_async(shim_stream *stream, void *target, int value, size_t n);
void *shim_untagged(const void *tagged, size_t n); /* NULL when it is not n bytes of a block */

shim_stream *shim_stream_create(int device);
int shim_stream_destroy(shim_stream *stream);
int shim_stream_is(const shim_stream *stream);
int shim_stream_device(const shim_stream *stream);
int shim_stream_synchronize(shim_stream *stream);
int shim_stream_query(shim_stream *stream); /* 1 when its work is done; asking lets it do one thing */
int shim_stream_wait(shim_stream *stream, shim_event *event);
int shim_stream_call(shim_stream *stream, shim_work work, void *argument);
void shim_device_synchronize(int device);

shim_event *shim_event_create(void);
int shim_event_destroy(shim_event *event);
int shim_event_is(const shim_event *event);
int shim_event_record(shim_event *event, shim_stream *stream);
int shim_event_query(shim_event *event);
int shim_event_synchronize(shim_event *event);
int shim_event_elapsed(float *ms, const shim_event *start, const shim_event *end);

/* Image text: "SHIM <name> <number of arguments> <bytes of each>...\n<key>"; 0 when it is none. */
int shim_image_name(const char *image, char name[256]);
int shim_image_sizes(const char *image, size_t sizes[64]);
int shim_launch(shim_stream *stream, const char *image, const uint32_t grid[3], uint32_t threads,
                const void *arguments, size_t size);
int shim_failed(void); /* whether a kernel failed since the last call */

/* Ranks of a group meet; for libraries of collectives. Kinds of elements for reductions: */
enum shim_kind { SHIM_I8, SHIM_U8, SHIM_I16, SHIM_U16, SHIM_I32, SHIM_U32, SHIM_I64, SHIM_U64, SHIM_F16, SHIM_BF16,
                 SHIM_F32, SHIM_F64 };
enum shim_collective { SHIM_ALL_REDUCE, SHIM_ALL_GATHER, SHIM_REDUCE_SCATTER, SHIM_BROADCAST };
enum shim_reduction { SHIM_SUM, SHIM_PROD, SHIM_MAX, SHIM_MIN, SHIM_AVG };
typedef struct shim_comm shim_comm;
shim_comm *shim_join(const void *id, size_t id_bytes, int num_ranks, int rank, int device);
int shim_leave(shim_comm *comm);
int shim_comm_is(const shim_comm *comm);
int shim_collective(shim_comm *comm, enum shim_collective what, const void *send, void *recv, size_t n,
                    enum shim_kind kind, enum shim_reduction op, int root, shim_stream *stream);
int shim_send(shim_comm *comm, const void *send, size_t n, enum shim_kind kind, int peer, shim_stream *stream);
int shim_recv(shim_comm *comm, void *recv, size_t n, enum shim_kind kind, int peer, shim_stream *stream);
int shim_group_start(void);
int shim_group_end(void);
size_t shim_kind_bytes(enum shim_kind kind);
#endif
