/* surrogate_flow.h: a program's steps, to the worker that has started it.

   C99 and C++, POSIX, nothing to link. Three calls:

       size_t size[] = {ny, nx};
       sf_stream *stream = sf_open(2, size, NULL, 0, 1);
       for (...)
           sf_step(stream, "u", time, u);
       sf_close(stream);

   Where no worker has started the program they do nothing. What goes wrong they say on
   stderr, which the worker quotes; return values need no look.

   For a Fortran program the functions are made once, for the linker:
       cc -c -x c -DSF_API= surrogate_flow.h -o surrogate_flow.o                       */

#ifndef SURROGATE_FLOW_H
#define SURROGATE_FLOW_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef SF_API
#define SF_API static inline
#endif

/* Before each name and its values; in the byte order of the machine. */
typedef struct {
    char magic[8];    /* SFSTEPS and the version */
    uint32_t kind;    /* 1: open, 2: step, 3: step that lies in the shared memory */
    uint32_t type;    /* open: 1 if the first index is the fastest; step: bytes of a value */
    uint64_t number;  /* of the frame: 0, 1, 2, ... */
    double time;      /* of the step */
    uint64_t name;    /* bytes of the variable's name, which follows */
    uint64_t bytes;   /* of the values, which follow that, but for kind 3 */
} sf_frame;

/* The worker's answer to the first frame, with the memory's descriptor; the sizes of the
   whole grid and the names of the variables follow. The memory has a row for each of
   some steps of a variable, of the whole grid, each as if all were double precision. */
typedef struct {
    char magic[8];
    uint64_t rows;      /* of the memory; 0: there is none */
    uint64_t variables;
    uint64_t letters;   /* bytes of the names, with a zero behind each */
} sf_room;

typedef struct {
    int socket;         /* -1 once it has failed */
    int dims;
    uint64_t cells;     /* of the block that this process has */
    uint64_t frames;    /* that were sent */
    uint64_t blocks;    /* that were sent */
    uint64_t *box;      /* sizes, begins, sizes of the grid; in the order of the memory */
    char *memory;       /* that the worker has, too; or NULL */
    uint64_t mapped;    /* bytes of it */
    uint64_t end;       /* first step that has no row yet */
    sf_room room;
    char *names;
} sf_stream;

SF_API sf_stream *sf_open(int dims, const size_t *size, const size_t *first, int rank,
                          int ranks);
SF_API sf_stream *sf_open_fortran(int dims, const size_t *size, const size_t *first,
                                  int rank, int ranks);
SF_API int sf_step(sf_stream *stream, const char *variable, double time,
                   const double *values);
SF_API int sf_step_float(sf_stream *stream, const char *variable, double time,
                         const float *values);
SF_API void sf_close(sf_stream *stream);

/* What follows is not for users. */

static inline int sf_failed_(sf_stream *stream, const char *what, const char *why)
{
    fprintf(stderr, "surrogate_flow: %s: %s\n", what, why);
    if (stream->socket >= 0)
        close(stream->socket);
    stream->socket = -1;
    return -1;
}

/* Send a frame, and wait while the worker does not read. Values in the shared memory,
   which are NULL here, do not follow it. */
static inline int sf_send_(sf_stream *stream, uint32_t kind, uint32_t type, double time,
                           const char *name, const void *values, uint64_t bytes)
{
#ifdef MSG_NOSIGNAL
    const int flags = MSG_NOSIGNAL;
#else
    const int flags = 0;
#endif
    sf_frame frame;
    struct iovec parts[3];
    struct msghdr message;

    if (stream->socket < 0)
        return -1;
    memcpy(frame.magic, "SFSTEPS2", 8);
    frame.kind = kind;
    frame.type = type;
    frame.number = stream->frames++;
    frame.time = time;
    frame.name = strlen(name);
    frame.bytes = bytes;
    parts[0].iov_base = &frame;
    parts[0].iov_len = sizeof frame;
    parts[1].iov_base = (void *)name;
    parts[1].iov_len = (size_t)frame.name;
    parts[2].iov_base = (void *)values;
    parts[2].iov_len = values ? (size_t)bytes : 0;
    memset(&message, 0, sizeof message);
    message.msg_iov = parts;
    message.msg_iovlen = 3;
    while (message.msg_iovlen > 0) {
        ssize_t sent = sendmsg(stream->socket, &message, flags);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return sf_failed_(stream, "the worker takes no more steps", strerror(errno));
        while (message.msg_iovlen > 0 && (size_t)sent >= message.msg_iov->iov_len) {
            sent -= (ssize_t)message.msg_iov->iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (message.msg_iovlen > 0) {
            message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + sent;
            message.msg_iov->iov_len -= (size_t)sent;
        }
    }
    return 0;
}

/* Receive what the worker sends, and with its first byte a descriptor, if there is one. */
static inline int sf_receive_(sf_stream *stream, void *to, uint64_t bytes, int *file)
{
    union {
        struct cmsghdr first;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message;
    struct iovec part;
    struct cmsghdr *given;

    while (bytes > 0) {
        ssize_t got;
        memset(&message, 0, sizeof message);
        part.iov_base = to;
        part.iov_len = (size_t)bytes;
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = &control;
        message.msg_controllen = file ? sizeof control : 0;
        got = recvmsg(stream->socket, &message, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return sf_failed_(stream, "the worker takes no more steps",
                              got ? strerror(errno) : "it has closed the stream");
        given = file ? CMSG_FIRSTHDR(&message) : NULL;
        if (given && given->cmsg_level == SOL_SOCKET && given->cmsg_type == SCM_RIGHTS)
            memcpy(file, CMSG_DATA(given), sizeof *file);
        to = (char *)to + got;
        bytes -= (uint64_t)got;
    }
    return 0;
}

/* Map the memory that the worker shares. Without it, steps are sent by the socket. */
static inline int sf_share_(sf_stream *stream)
{
    const uint64_t dims = (uint64_t)stream->dims, most = 1 << 30;
    uint64_t *whole = stream->box + 2 * dims, bytes = sizeof(double), d;
    sf_room *room = &stream->room;
    int file = -1, failed, fits = 1;
    void *memory;

    failed = sf_receive_(stream, room, sizeof *room, &file);
    if (!failed && (memcmp(room->magic, "SFSTEPS2", 8) || room->letters > most))
        failed = sf_failed_(stream, "the worker", "is of another version");
    if (!failed)
        failed = sf_receive_(stream, whole, dims * sizeof *whole, NULL);
    if (!failed && !(stream->names = (char *)calloc((size_t)room->letters + 1, 1)))
        failed = sf_failed_(stream, "names of variables", strerror(errno));
    if (!failed)
        failed = sf_receive_(stream, stream->names, room->letters, NULL);
    if (!failed && file >= 0) {
        for (d = 0; d < dims; d++) {
            bytes *= whole[d];
            fits &= stream->box[dims + d] + stream->box[d] <= whole[d];
        }
        bytes *= room->rows * room->variables;
        fits &= bytes > 0 && lseek(file, 0, SEEK_END) == (off_t)bytes;
        memory = fits ? mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
                      : MAP_FAILED;
        stream->memory = memory == MAP_FAILED ? NULL : (char *)memory;
        stream->mapped = bytes;
        stream->end = room->rows;
    }
    if (file >= 0)
        close(file);
    return failed;
}

/* Copy the values of a block into the whole grid. */
static inline void sf_place_(const sf_stream *stream, char *grid, const char *values,
                             uint64_t item)
{
    const int dims = stream->dims;
    const uint64_t *size = stream->box, *first = size + dims, *whole = first + dims;
    uint64_t run = item, runs = 1, inner = item, k;
    int outer = dims, d;

    while (outer > 0) { /* what lies together, in the block and in the grid */
        outer--;
        run *= size[outer];
        if (size[outer] != whole[outer])
            break;
    }
    for (d = 0; d < outer; d++)
        runs *= size[d];
    for (d = dims; d-- > outer;) {
        grid += first[d] * inner;
        inner *= whole[d];
    }
    for (k = 0; k < runs; k++) {
        uint64_t rest = k, stride = inner, at = 0;
        for (d = outer; d-- > 0;) {
            at += (first[d] + rest % size[d]) * stride;
            rest /= size[d];
            stride *= whole[d];
        }
        memcpy(grid + at, values + k * run, (size_t)run);
    }
}

/* Put a step where the worker reads it, and wait while there is no room for it. */
static inline int sf_put_(sf_stream *stream, uint32_t item, double time,
                          const char *variable, const void *values)
{
    const uint64_t bytes = stream->cells * item, rows = stream->room.rows;
    const char *name = stream->names;
    uint64_t step, grid, i;

    if (stream->socket < 0)
        return -1;
    for (i = 0; stream->memory && i < stream->room.variables; i++) {
        if (strcmp(name, variable)) {
            name += strlen(name);
            name += name < stream->names + stream->room.letters;
            continue;
        }
        step = stream->blocks++ / stream->room.variables;
        while (step >= stream->end)
            if (sf_receive_(stream, &stream->end, sizeof stream->end, NULL))
                return -1;
        grid = stream->mapped / stream->room.variables / rows / sizeof(double);
        sf_place_(stream,
                  stream->memory + i * rows * grid * sizeof(double) +
                      step % rows * grid * item,
                  (const char *)values, item);
        return sf_send_(stream, 3, item, time, variable, NULL, bytes);
    }
    return sf_send_(stream, 2, item, time, variable, values, bytes);
}

static inline int sf_connect_(sf_stream *stream, const char *path)
{
    struct sockaddr_un address;
    const char *name = strrchr(path, '/');
    char *folder = NULL;
    int at = -1, done, room = 1 << 20; /* bytes, or what the system allows */

    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    if (strlen(path) < sizeof address.sun_path) {
        strcpy(address.sun_path, path);
    } else if (name) { /* too long for an address: by its folder, on Linux */
        folder = (char *)malloc((size_t)(name - path) + 1);
        if (folder) {
            memcpy(folder, path, (size_t)(name - path));
            folder[name - path] = 0;
            at = open(folder, O_RDONLY);
            free(folder);
        }
        snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d%.64s", at,
                 name);
    }
    stream->socket = socket(AF_UNIX, SOCK_STREAM, 0);
    if (stream->socket < 0)
        return -1;
    fcntl(stream->socket, F_SETFD, FD_CLOEXEC);
    setsockopt(stream->socket, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
#ifdef SO_NOSIGPIPE
    done = 1;
    setsockopt(stream->socket, SOL_SOCKET, SO_NOSIGPIPE, &done, sizeof done);
#endif
    done = connect(stream->socket, (struct sockaddr *)&address, sizeof address);
    if (at >= 0)
        close(at);
    return done;
}

static inline sf_stream *sf_open_(uint32_t fortran, int dims, const size_t *size,
                                  const size_t *first, int rank, int ranks)
{
    const char *path = getenv("SURROGATE_FLOW_STREAM");
    sf_stream *stream;
    uint64_t *shape;
    int i;

    if (!path || !*path) {
        if (rank == 0)
            fprintf(stderr, "surrogate_flow: no worker has started this program: its "
                            "steps go nowhere\n");
        return NULL;
    }
    if (dims < 0)
        dims = 0;
    stream = (sf_stream *)calloc(1, sizeof *stream);
    shape = (uint64_t *)malloc((size_t)(3 + 2 * dims) * sizeof *shape);
    if (stream) {
        stream->socket = -1;
        stream->box = (uint64_t *)calloc((size_t)(3 * dims + 1), sizeof *shape);
    }
    if (!stream || !shape || !stream->box) {
        free(shape);
        sf_close(stream);
        return NULL;
    }
    stream->dims = dims;
    stream->cells = 1;
    shape[0] = (uint64_t)rank;
    shape[1] = (uint64_t)ranks;
    shape[2] = (uint64_t)dims;
    for (i = 0; i < dims; i++) {
        const int place = fortran ? dims - 1 - i : i;
        shape[3 + i] = stream->box[dims + place] = first ? (uint64_t)first[i] : 0;
        shape[3 + dims + i] = stream->box[place] = (uint64_t)size[i];
        stream->cells *= (uint64_t)size[i];
    }
    if (sf_connect_(stream, path))
        sf_failed_(stream, path, strerror(errno));
    else if (!sf_send_(stream, 1, fortran, 0.0, "", shape,
                       (uint64_t)(3 + 2 * dims) * sizeof *shape))
        sf_share_(stream);
    free(shape);
    return stream;
}

/* Connect to the worker.

   dims, size   the block of the grid that this process has; the last index is the
                fastest
   first        where it begins in the whole grid; NULL: at 0
   rank, ranks  of MPI_COMM_WORLD; 0, 1 of a serial program                           */
SF_API sf_stream *sf_open(int dims, const size_t *size, const size_t *first, int rank,
                          int ranks)
{
    return sf_open_(0, dims, size, first, rank, ranks);
}

/* The same; the first index is the fastest. */
SF_API sf_stream *sf_open_fortran(int dims, const size_t *size, const size_t *first,
                                  int rank, int ranks)
{
    return sf_open_(1, dims, size, first, rank, ranks);
}

/* Send a variable of the next step: of the block, without gaps. A step is whole when
   every variable of it has been sent, by all ranks. 0, or -1 if it could not be sent. */
SF_API int sf_step(sf_stream *stream, const char *variable, double time,
                   const double *values)
{
    if (!stream)
        return 0;
    return sf_put_(stream, sizeof *values, time, variable, values);
}

/* The same in single precision. */
SF_API int sf_step_float(sf_stream *stream, const char *variable, double time,
                         const float *values)
{
    if (!stream)
        return 0;
    return sf_put_(stream, sizeof *values, time, variable, values);
}

SF_API void sf_close(sf_stream *stream)
{
    if (!stream)
        return;
    if (stream->socket >= 0)
        close(stream->socket);
    if (stream->memory)
        munmap(stream->memory, (size_t)stream->mapped);
    free(stream->box);
    free(stream->names);
    free(stream);
}

#ifdef __cplusplus
}
#endif

#endif
