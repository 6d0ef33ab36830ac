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
    uint32_t kind;    /* 1: open, 2: step */
    uint32_t type;    /* open: 1 if the first index is the fastest; step: bytes of a value */
    uint64_t number;  /* of the frame: 0, 1, 2, ... */
    double time;      /* of the step */
    uint64_t name;    /* bytes of the variable's name, which follows */
    uint64_t bytes;   /* of what follows that */
} sf_frame;

typedef struct {
    int socket;       /* -1 once it has failed */
    uint64_t cells;   /* of the block that this process has */
    uint64_t frames;  /* that were sent */
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

/* Send a frame, and wait while the worker does not read. */
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
    memcpy(frame.magic, "SFSTEPS1", 8);
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
    parts[2].iov_len = (size_t)bytes;
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
    stream = (sf_stream *)malloc(sizeof *stream);
    shape = (uint64_t *)malloc((size_t)(3 + 2 * (dims > 0 ? dims : 0)) * sizeof *shape);
    if (!stream || !shape) {
        free(stream);
        free(shape);
        return NULL;
    }
    stream->frames = 0;
    stream->cells = 1;
    shape[0] = (uint64_t)rank;
    shape[1] = (uint64_t)ranks;
    shape[2] = (uint64_t)dims;
    for (i = 0; i < dims; i++) {
        shape[3 + i] = first ? (uint64_t)first[i] : 0;
        shape[3 + dims + i] = (uint64_t)size[i];
        stream->cells *= (uint64_t)size[i];
    }
    if (sf_connect_(stream, path))
        sf_failed_(stream, path, strerror(errno));
    else
        sf_send_(stream, 1, fortran, 0.0, "", shape,
                 (uint64_t)(3 + 2 * (dims > 0 ? dims : 0)) * sizeof *shape);
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
    return sf_send_(stream, 2, sizeof *values, time, variable, values,
                    stream->cells * sizeof *values);
}

/* The same in single precision. */
SF_API int sf_step_float(sf_stream *stream, const char *variable, double time,
                         const float *values)
{
    if (!stream)
        return 0;
    return sf_send_(stream, 2, sizeof *values, time, variable, values,
                    stream->cells * sizeof *values);
}

SF_API void sf_close(sf_stream *stream)
{
    if (stream && stream->socket >= 0)
        close(stream->socket);
    free(stream);
}

#ifdef __cplusplus
}
#endif

#endif
