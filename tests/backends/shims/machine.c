#define _GNU_SOURCE
#include "machine.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct block { char *memory; size_t n; int device; struct block *next; };
struct item {
    enum { COPY, FILL, RECORD, WAIT, CALL, LAUNCH } what;
    void *target; const void *source; size_t n; int value;
    shim_event *event; shim_work work; void *argument;
    char *image; uint32_t grid[3]; uint32_t threads; void *arguments;
    struct item *next;
};
struct shim_stream { int device; struct item *first, *last; int is_busy; struct shim_stream *next; };
struct shim_event { int num_recorded, num_done; double ms; shim_stream *stream; struct shim_event *next; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct block *blocks, *host_blocks;
static shim_stream *streams;
static shim_event *events;
static size_t used[SHIM_DEVICES], limit = 1u << 30;
static double clock_ms;
static shim_launcher launcher;
static int kernel_failed;
static char *text;
static size_t text_n, text_room;

#define LOCKED(type, expression) pthread_mutex_lock(&lock); type result_ = (expression); \
    pthread_mutex_unlock(&lock); return result_

/* --- log ---------------------------------------------------------------------------------------- */

void shim_note(const char *format, ...) {
    char line[512];
    va_list rest;
    va_start(rest, format);
    int n = vsnprintf(line, sizeof line - 1, format, rest);
    va_end(rest);
    line[n] = '\n';
    line[n + 1] = 0;
    pthread_mutex_lock(&lock);
    if (text_n + n + 2 > text_room) text = realloc(text, text_room = 2 * (text_room + n + 2));
    memcpy(text + text_n, line, n + 2);
    text_n += n + 1;
    pthread_mutex_unlock(&lock);
}
const char *shim_log(void) { return text ? text : ""; }
void shim_reset(void) { pthread_mutex_lock(&lock); text_n = 0; if (text) text[0] = 0; pthread_mutex_unlock(&lock); }
void shim_set_limit(size_t bytes) { limit = bytes; }
void shim_set_launcher(shim_launcher given) { launcher = given; }
size_t shim_num_blocks(void) { size_t n = 0; for (struct block *b = blocks; b; b = b->next) n++; return n; }
size_t shim_num_streams(void) { size_t n = 0; for (shim_stream *s = streams; s; s = s->next) n++; return n; }
size_t shim_num_events(void) { size_t n = 0; for (shim_event *e = events; e; e = e->next) n++; return n; }

/* --- memory ------------------------------------------------------------------------------------- */

static void *tagged(char *memory) { return (void *)((uintptr_t)memory | SHIM_TAG); }
static int is_tagged(const void *address) { return ((uintptr_t)address & SHIM_TAG_MASK) == SHIM_TAG; }

static void *untagged(const void *address, size_t n) {
    if (!is_tagged(address)) return NULL;
    char *memory = (char *)((uintptr_t)address & ~SHIM_TAG_MASK);
    for (struct block *b = blocks; b; b = b->next)
        if (memory >= b->memory && memory + n <= b->memory + b->n) return memory;
    return NULL;
}

static void *allocate(int device, size_t n, size_t alignment) {
    void *memory;
    if (used[device] + n > limit || posix_memalign(&memory, alignment, n)) return NULL;
    memset(memory, SHIM_JUNK, n);
    struct block *b = malloc(sizeof *b);
    *b = (struct block){memory, n, device, blocks};
    blocks = b;
    used[device] += n;
    return tagged(memory);
}
void *shim_allocate(int device, size_t n, size_t alignment) { LOCKED(void *, allocate(device, n, alignment)); }

static int release(struct block **list, char *memory) {
    for (struct block **b = list; *b; b = &(*b)->next)
        if ((*b)->memory == memory) {
            struct block *gone = *b;
            *b = gone->next;
            if (list == &blocks) used[gone->device] -= gone->n;
            free(gone->memory);
            free(gone);
            return 0;
        }
    return -1;
}
int shim_free(void *address) {
    if (!is_tagged(address)) return -1;
    LOCKED(int, release(&blocks, (char *)((uintptr_t)address & ~SHIM_TAG_MASK)));
}
void *shim_allocate_host(size_t n) {
    struct block *b = malloc(sizeof *b);
    pthread_mutex_lock(&lock);
    *b = (struct block){malloc(n), n, 0, host_blocks};
    host_blocks = b;
    pthread_mutex_unlock(&lock);
    return b->memory;
}
int shim_free_host(void *host) { LOCKED(int, release(&host_blocks, host)); }
void shim_memory(int device, size_t *available, size_t *total) { *available = limit - used[device]; *total = limit; }
void *shim_untagged(const void *address, size_t n) { LOCKED(void *, untagged(address, n)); }

static const void *side(const void *address, size_t n, int is_device) {
    if (is_device) return untagged(address, n);
    return is_tagged(address) ? NULL : address;
}
static int copy(void *target, const void *source, size_t n, enum shim_direction direction) {
    int to_device = direction == SHIM_H2D || direction == SHIM_D2D;
    int from_device = direction == SHIM_D2H || direction == SHIM_D2D;
    void *to = (void *)side(target, n, to_device);
    const void *from = side(source, n, from_device);
    if (!to || !from) return -1;
    memmove(to, from, n);
    return 0;
}
int shim_copy(void *target, const void *source, size_t n, enum shim_direction direction) {
    LOCKED(int, copy(target, source, n, direction));
}

/* --- streams and events ------------------------------------------------------------------------- */

static int is_stream(const shim_stream *stream) {
    for (shim_stream *s = streams; s; s = s->next) if (s == stream) return 1;
    return 0;
}
static int is_event(const shim_event *event) {
    for (shim_event *e = events; e; e = e->next) if (e == event) return 1;
    return 0;
}

static void run(shim_stream *stream);

static void perform(struct item *item) {
    clock_ms += 0.25;
    switch (item->what) {
    case COPY: memmove(item->target, item->source, item->n); break;
    case FILL: memset(item->target, item->value, item->n); break;
    case RECORD: item->event->num_done++; item->event->ms = clock_ms; break;
    case WAIT: /* for what was recorded when the wait was asked for */
        while (item->event->num_done < item->value) run(item->event->stream);
        break;
    case CALL: item->work(item->argument); break;
    case LAUNCH:
        if (!launcher || launcher(item->image, item->grid, item->threads, item->arguments, item->n)) kernel_failed = 1;
        break;
    }
}

/* One thing of a stream, or a wait for whoever does one: then what the caller waits for may have happened. The lock
   is held, and given up while ranks wait for each other. */
static void run(shim_stream *stream) {
    if (stream->is_busy) {
        pthread_cond_wait(&changed, &lock);
        return;
    }
    struct item *item = stream->first;
    if (!item) return;
    stream->first = item->next;
    if (!stream->first) stream->last = NULL;
    stream->is_busy = 1;
    perform(item);
    stream->is_busy = 0;
    pthread_cond_broadcast(&changed);
    free(item->image);
    free(item->arguments);
    free(item);
}
static void drain(shim_stream *stream) { while (stream->first || stream->is_busy) run(stream); }

static int push(shim_stream *stream, struct item item) {
    if (!is_stream(stream)) return -1;
    struct item *kept = malloc(sizeof *kept);
    *kept = item;
    kept->next = NULL;
    if (stream->last) stream->last->next = kept; else stream->first = kept;
    stream->last = kept;
    return 0;
}

static int copy_async(shim_stream *stream, void *target, const void *source, size_t n, enum shim_direction direction) {
    void *to = (void *)side(target, n, direction == SHIM_H2D || direction == SHIM_D2D);
    const void *from = side(source, n, direction == SHIM_D2H || direction == SHIM_D2D);
    if (!to || !from) return -1;
    return push(stream, (struct item){.what = COPY, .target = to, .source = from, .n = n});
}
int shim_copy_async(shim_stream *stream, void *target, const void *source, size_t n, enum shim_direction direction) {
    LOCKED(int, copy_async(stream, target, source, n, direction));
}
static int fill_async(shim_stream *stream, void *target, int value, size_t n) {
    void *to = untagged(target, n);
    return to ? push(stream, (struct item){.what = FILL, .target = to, .value = value, .n = n}) : -1;
}
int shim_fill_async(shim_stream *stream, void *target, int value, size_t n) {
    LOCKED(int, fill_async(stream, target, value, n));
}

shim_stream *shim_stream_create(int device) {
    shim_stream *made = calloc(1, sizeof *made);
    pthread_mutex_lock(&lock);
    made->device = device;
    made->next = streams;
    streams = made;
    pthread_mutex_unlock(&lock);
    return made;
}
static int stream_destroy(shim_stream *stream) {
    for (shim_stream **s = &streams; *s; s = &(*s)->next)
        if (*s == stream) {
            drain(stream);
            for (s = &streams; *s != stream; s = &(*s)->next) {}
            *s = stream->next;
            return 0; /* never freed: a stale handle is then known to be stale */
        }
    return -1;
}
int shim_stream_destroy(shim_stream *stream) { LOCKED(int, stream_destroy(stream)); }
int shim_stream_is(const shim_stream *stream) { LOCKED(int, is_stream(stream)); }
int shim_stream_device(const shim_stream *stream) { return stream->device; }
static int synchronize(shim_stream *stream) { if (!is_stream(stream)) return -1; drain(stream); return 0; }
int shim_stream_synchronize(shim_stream *stream) { LOCKED(int, synchronize(stream)); }
static int query(shim_stream *stream) {
    if (!stream->first && !stream->is_busy) return 1;
    if (!stream->is_busy) run(stream);
    return 0;
}
int shim_stream_query(shim_stream *stream) { LOCKED(int, query(stream)); }
static int wait_for(shim_stream *stream, shim_event *event) {
    return is_event(event) ? push(stream, (struct item){.what = WAIT, .event = event, .value = event->num_recorded}) : -1;
}
int shim_stream_wait(shim_stream *stream, shim_event *event) { LOCKED(int, wait_for(stream, event)); }
int shim_stream_call(shim_stream *stream, shim_work work, void *argument) {
    LOCKED(int, push(stream, (struct item){.what = CALL, .work = work, .argument = argument}));
}
void shim_device_synchronize(int device) {
    pthread_mutex_lock(&lock);
    for (shim_stream *s = streams; s; s = s->next) if (s->device == device) drain(s);
    pthread_mutex_unlock(&lock);
}

shim_event *shim_event_create(void) {
    shim_event *made = calloc(1, sizeof *made);
    pthread_mutex_lock(&lock);
    made->next = events;
    events = made;
    pthread_mutex_unlock(&lock);
    return made;
}
static int event_destroy(shim_event *event) {
    for (shim_event **e = &events; *e; e = &(*e)->next)
        if (*e == event) { *e = event->next; return 0; }
    return -1;
}
int shim_event_destroy(shim_event *event) { LOCKED(int, event_destroy(event)); }
int shim_event_is(const shim_event *event) { LOCKED(int, is_event(event)); }
static int record(shim_event *event, shim_stream *stream) {
    if (!is_event(event) || push(stream, (struct item){.what = RECORD, .event = event})) return -1;
    event->num_recorded++;
    event->stream = stream;
    return 0;
}
int shim_event_record(shim_event *event, shim_stream *stream) { LOCKED(int, record(event, stream)); }
static int event_query(shim_event *event) {
    if (event->num_done == event->num_recorded) return 1;
    query(event->stream);
    return 0;
}
int shim_event_query(shim_event *event) { LOCKED(int, event_query(event)); }
static int event_synchronize(shim_event *event) {
    if (!is_event(event)) return -1;
    while (event->num_done < event->num_recorded) run(event->stream);
    return 0;
}
int shim_event_synchronize(shim_event *event) { LOCKED(int, event_synchronize(event)); }
int shim_event_elapsed(float *ms, const shim_event *start, const shim_event *end) {
    if (!start->num_done || !end->num_done) return -1;
    *ms = (float)(end->ms - start->ms);
    return 0;
}

/* --- kernels ------------------------------------------------------------------------------------ */

int shim_image_name(const char *image, char name[256]) { return sscanf(image, "SHIM %255s", name) == 1; }
int shim_image_sizes(const char *image, size_t sizes[64]) {
    char name[256];
    int count, at, more;
    if (sscanf(image, "SHIM %255s %d%n", name, &count, &at) != 2 || count > 64) return -1;
    for (int i = 0; i < count; i++, at += more)
        if (sscanf(image + at, " %zu%n", &sizes[i], &more) != 1) return -1;
    return count;
}
int shim_launch(shim_stream *stream, const char *image, const uint32_t grid[3], uint32_t threads,
                const void *arguments, size_t size) {
    struct item item = {.what = LAUNCH, .image = strdup(image), .threads = threads, .n = size};
    memcpy(item.grid, grid, sizeof item.grid);
    item.arguments = malloc(size + 1);
    memcpy(item.arguments, arguments, size);
    LOCKED(int, push(stream, item));
}
int shim_failed(void) { pthread_mutex_lock(&lock); int f = kernel_failed; kernel_failed = 0; pthread_mutex_unlock(&lock); return f; }

/* --- ranks -------------------------------------------------------------------------------------- */

#define MOST_RANKS 16
struct meeting {
    char *id; size_t id_bytes; int num_ranks, joined, arrived, generation;
    const void *send[MOST_RANKS]; void *recv[MOST_RANKS];
    struct { const void *from; size_t n; } box[MOST_RANKS][MOST_RANKS];
    struct meeting *next;
};
struct shim_comm { struct meeting *meeting; int rank, device; struct shim_comm *next; };
struct call { shim_comm *comm; int what; const void *send; void *recv; size_t n; int kind, op, root; struct call *more; shim_stream *stream; };
enum { SEND = 100, RECV, GROUP };
static struct meeting *meetings;
static shim_comm *comms;
static __thread int group_depth;
static __thread struct call *grouped;

size_t shim_kind_bytes(enum shim_kind kind) {
    static const size_t bytes[] = {1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8};
    return bytes[kind];
}
static long double get(enum shim_kind kind, const void *at, size_t i) {
    switch (kind) {
    case SHIM_I8: return ((const int8_t *)at)[i];
    case SHIM_U8: return ((const uint8_t *)at)[i];
    case SHIM_I16: return ((const int16_t *)at)[i];
    case SHIM_U16: return ((const uint16_t *)at)[i];
    case SHIM_I32: return ((const int32_t *)at)[i];
    case SHIM_U32: return ((const uint32_t *)at)[i];
    case SHIM_I64: return ((const int64_t *)at)[i];
    case SHIM_U64: return ((const uint64_t *)at)[i];
    case SHIM_F16: return ((const _Float16 *)at)[i];
    case SHIM_BF16: { uint32_t bits = (uint32_t)((const uint16_t *)at)[i] << 16; float x; memcpy(&x, &bits, 4); return x; }
    case SHIM_F32: return ((const float *)at)[i];
    default: return ((const double *)at)[i];
    }
}
static void put(enum shim_kind kind, void *at, size_t i, long double x) {
    switch (kind) {
    case SHIM_I8: ((int8_t *)at)[i] = x; break;
    case SHIM_U8: ((uint8_t *)at)[i] = x; break;
    case SHIM_I16: ((int16_t *)at)[i] = x; break;
    case SHIM_U16: ((uint16_t *)at)[i] = x; break;
    case SHIM_I32: ((int32_t *)at)[i] = x; break;
    case SHIM_U32: ((uint32_t *)at)[i] = x; break;
    case SHIM_I64: ((int64_t *)at)[i] = x; break;
    case SHIM_U64: ((uint64_t *)at)[i] = x; break;
    case SHIM_F16: ((_Float16 *)at)[i] = (_Float16)x; break;
    case SHIM_BF16: {
        float f = x; uint32_t bits; memcpy(&bits, &f, 4);
        bits += 0x7FFF + ((bits >> 16) & 1); /* to even */
        ((uint16_t *)at)[i] = bits >> 16; break;
    }
    case SHIM_F32: ((float *)at)[i] = x; break;
    default: ((double *)at)[i] = x;
    }
}
static void reduce(struct meeting *m, enum shim_kind kind, enum shim_reduction op, size_t first, size_t n, char *out) {
    for (size_t i = 0; i < n; i++) {
        long double total = get(kind, m->send[0], first + i);
        for (int r = 1; r < m->num_ranks; r++) {
            long double x = get(kind, m->send[r], first + i);
            if (op == SHIM_SUM || op == SHIM_AVG) total += x;
            else if (op == SHIM_PROD) total *= x;
            else if (op == SHIM_MAX) total = x > total ? x : total;
            else total = x < total ? x : total;
        }
        put(kind, out, i, op == SHIM_AVG ? total / m->num_ranks : total);
    }
}
static void everybody(struct meeting *m, const struct call *c) {
    size_t bytes = shim_kind_bytes(c->kind) * c->n;
    char *out[MOST_RANKS]; /* results aside: ranks may send and receive in one place */
    size_t size = c->what == SHIM_ALL_GATHER ? bytes * m->num_ranks : bytes;
    for (int r = 0; r < m->num_ranks; r++) {
        out[r] = malloc(size);
        if (c->what == SHIM_BROADCAST) memcpy(out[r], m->send[c->root], bytes);
        else if (c->what == SHIM_ALL_GATHER)
            for (int s = 0; s < m->num_ranks; s++) memcpy(out[r] + s * bytes, m->send[s], bytes);
        else reduce(m, c->kind, c->op, c->what == SHIM_REDUCE_SCATTER ? r * c->n : 0, c->n, out[r]);
    }
    for (int r = 0; r < m->num_ranks; r++) { memcpy(m->recv[r], out[r], size); free(out[r]); }
}
static void *progress(void *stream) {
    pthread_mutex_lock(&lock);
    drain(stream);
    pthread_mutex_unlock(&lock);
    return NULL;
}
/* Devices go on while one of them waits for others, whoever waits for which on the host. */
static void others(void) {
    for (shim_stream *s = streams; s; s = s->next)
        if (s->first && !s->is_busy) {
            pthread_t thread;
            if (!pthread_create(&thread, NULL, progress, s)) pthread_detach(thread);
        }
}
static void meet(struct call *c) {
    struct meeting *m = c->comm->meeting;
    m->send[c->comm->rank] = c->send;
    m->recv[c->comm->rank] = c->recv;
    int generation = m->generation;
    if (++m->arrived == m->num_ranks) {
        everybody(m, c);
        m->arrived = 0;
        m->generation++;
        pthread_cond_broadcast(&changed);
    } else {
        others();
        while (m->generation == generation) pthread_cond_wait(&changed, &lock);
    }
}
static void post(struct call *c) {
    struct meeting *m = c->comm->meeting;
    others();
    while (m->box[c->comm->rank][c->root].from) pthread_cond_wait(&changed, &lock);
    m->box[c->comm->rank][c->root].from = c->send;
    m->box[c->comm->rank][c->root].n = c->n * shim_kind_bytes(c->kind);
    pthread_cond_broadcast(&changed);
}
static void posted(struct call *c) {
    while (c->comm->meeting->box[c->comm->rank][c->root].from) pthread_cond_wait(&changed, &lock);
}
static void take(struct call *c) {
    struct meeting *m = c->comm->meeting;
    others();
    while (!m->box[c->root][c->comm->rank].from) pthread_cond_wait(&changed, &lock);
    memcpy(c->recv, m->box[c->root][c->comm->rank].from, c->n * shim_kind_bytes(c->kind));
    m->box[c->root][c->comm->rank].from = NULL;
    pthread_cond_broadcast(&changed);
}
static void perform_call(void *argument) {
    struct call *c = argument;
    for (struct call *each = c; each; each = each->more) {
        if (each->what == SEND) post(each);
        else if (each->what != RECV) meet(each);
    }
    for (struct call *each = c; each; each = each->more) if (each->what == RECV) take(each);
    for (struct call *each = c; each; each = each->more) if (each->what == SEND) posted(each);
    while (c) { struct call *more = c->more; free(c); c = more; }
}
static int is_comm(const shim_comm *comm) {
    for (shim_comm *c = comms; c; c = c->next) if (c == comm) return 1;
    return 0;
}
static int enqueue(struct call call, shim_stream *stream) {
    if (!is_comm(call.comm) || !is_stream(stream) || stream->device != call.comm->device) return -1;
    struct call *kept = malloc(sizeof *kept);
    *kept = call;
    if (group_depth) {
        kept->more = grouped;
        kept->stream = stream;
        grouped = kept;
        return 0;
    }
    return push(stream, (struct item){.what = CALL, .work = perform_call, .argument = kept});
}

static shim_comm *join(const void *id, size_t id_bytes, int num_ranks, int rank, int device) {
    struct meeting *m = meetings;
    while (m && !(m->id_bytes == id_bytes && !memcmp(m->id, id, id_bytes))) m = m->next;
    if (!m) {
        m = calloc(1, sizeof *m);
        m->id = malloc(id_bytes);
        memcpy(m->id, id, id_bytes);
        m->id_bytes = id_bytes;
        m->num_ranks = num_ranks;
        m->next = meetings;
        meetings = m;
    }
    if (m->num_ranks != num_ranks || rank < 0 || rank >= num_ranks || num_ranks > MOST_RANKS) return NULL;
    shim_comm *made = malloc(sizeof *made);
    *made = (shim_comm){m, rank, device, comms};
    comms = made;
    m->joined++;
    pthread_cond_broadcast(&changed);
    while (m->joined < num_ranks) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 20;
        if (pthread_cond_timedwait(&changed, &lock, &until)) return NULL;
    }
    return made;
}
shim_comm *shim_join(const void *id, size_t id_bytes, int num_ranks, int rank, int device) {
    LOCKED(shim_comm *, join(id, id_bytes, num_ranks, rank, device));
}
static int leave(shim_comm *comm) {
    for (shim_comm **c = &comms; *c; c = &(*c)->next)
        if (*c == comm) { *c = comm->next; return 0; }
    return -1;
}
int shim_leave(shim_comm *comm) { LOCKED(int, leave(comm)); }
int shim_comm_is(const shim_comm *comm) { LOCKED(int, is_comm(comm)); }

static int collective(shim_comm *comm, enum shim_collective what, const void *send, void *recv, size_t n,
                      enum shim_kind kind, enum shim_reduction op, int root, shim_stream *stream) {
    if (!is_comm(comm)) return -1;
    size_t one = n * shim_kind_bytes(kind), all = one * comm->meeting->num_ranks;
    const void *from = untagged(send, what == SHIM_REDUCE_SCATTER ? all : one);
    void *to = untagged(recv, what == SHIM_ALL_GATHER ? all : one);
    if (!from || !to) return -1;
    return enqueue((struct call){comm, what, from, to, n, kind, op, root, NULL, NULL}, stream);
}
int shim_collective(shim_comm *comm, enum shim_collective what, const void *send, void *recv, size_t n,
                    enum shim_kind kind, enum shim_reduction op, int root, shim_stream *stream) {
    LOCKED(int, collective(comm, what, send, recv, n, kind, op, root, stream));
}
static int message(int what, shim_comm *comm, const void *memory, size_t n, enum shim_kind kind, int peer,
                   shim_stream *stream) {
    void *at = untagged(memory, n * shim_kind_bytes(kind));
    if (!at || !is_comm(comm) || peer < 0 || peer >= comm->meeting->num_ranks) return -1;
    return enqueue((struct call){comm, what, at, at, n, kind, 0, peer, NULL, NULL}, stream);
}
int shim_send(shim_comm *comm, const void *send, size_t n, enum shim_kind kind, int peer, shim_stream *stream) {
    LOCKED(int, message(SEND, comm, send, n, kind, peer, stream));
}
int shim_recv(shim_comm *comm, void *recv, size_t n, enum shim_kind kind, int peer, shim_stream *stream) {
    LOCKED(int, message(RECV, comm, recv, n, kind, peer, stream));
}
int shim_group_start(void) { group_depth++; return 0; }
int shim_group_end(void) {
    if (!group_depth) return -1;
    if (--group_depth) return 0;
    int failed = 0;
    while (grouped) { /* what goes to one stream is one item */
        shim_stream *stream = grouped->stream;
        struct call *calls = NULL, **last = &calls;
        for (struct call **c = &grouped; *c;) {
            if ((*c)->stream != stream) { c = &(*c)->more; continue; }
            *last = *c;
            last = &(*last)->more;
            *c = *last;
            *last = NULL;
        }
        pthread_mutex_lock(&lock);
        failed |= push(stream, (struct item){.what = CALL, .work = perform_call, .argument = calls});
        pthread_mutex_unlock(&lock);
    }
    return failed;
}
