/* Stop a process, or let it fail, at the n-th change that it makes to the files below a folder.

   cc -shared -fPIC -o changes.so changes.c -ldl, then LD_PRELOAD=changes.so with

   CHANGES_BELOW  the folder, an absolute path
   CHANGES_LOG    a file that gets a line for every change: its number and its kind
   CHANGES_AT     the number of the change at which it happens, from 1 on
   CHANGES_HOW    before: SIGKILL before it, which is after the one before; half: SIGKILL after half of a write,
                  or after any other change;
                  ENOSPC, EIO: this change and all later ones fail so; ENOLCK: locks fail so

   For Linux. Threads count together. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long count = 0;

void count_anew(void) { count = 0; }

static int is_below(const char *path) {
    const char *below = getenv("CHANGES_BELOW");
    return below && path && strncmp(path, below, strlen(below)) == 0;
}

static int at_is_below(int folder, const char *path) {
    char link[64], at[PATH_MAX];
    if (path[0] == '/') return is_below(path);
    if (folder == AT_FDCWD) {
        if (!getcwd(at, sizeof at)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, at, sizeof at - 1);
        if (n < 0) return 0;
        at[n] = 0;
    }
    strncat(at, "/", sizeof at - strlen(at) - 1);
    strncat(at, path, sizeof at - strlen(at) - 1);
    return is_below(at);
}

static int fd_is_below(int fd) { return at_is_below(fd, ""); }

/* Count a change; return the errno with which it has to fail, or 0. HALF asks for SIGKILL
   after half of a write, or after a change of another kind. */
enum { HALF = -1 };

static int due(const char *kind) {
    const char *at = getenv("CHANGES_AT"), *how = getenv("CHANGES_HOW"), *log = getenv("CHANGES_LOG");
    pthread_mutex_lock(&mutex);
    long n = ++count;
    pthread_mutex_unlock(&mutex);
    if (log) {
        int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
        ssize_t (*real_write)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
        int fd = real_open(log, O_WRONLY | O_APPEND | O_CREAT, 0666);
        char line[64];
        int size = snprintf(line, sizeof line, "%ld %s\n", n, kind);
        if (fd >= 0) { real_write(fd, line, size); close(fd); }
    }
    if (!at || !how || n < atol(at)) return 0;
    if (!strcmp(how, "ENOSPC")) return ENOSPC;
    if (!strcmp(how, "EIO")) return EIO;
    if (n > atol(at)) return 0;
    if (!strcmp(how, "before")) kill(getpid(), SIGKILL);
    if (!strcmp(how, "half")) return HALF;
    return 0;
}

#define REAL(type, name, ...) type (*real)(__VA_ARGS__) = dlsym(RTLD_NEXT, name)
#define CHANGE(is, kind, call)                                       \
    int what = (is) ? due(kind) : 0;                                 \
    if (what > 0) { errno = what; return -1; }                       \
    __typeof__(call) result = call;                                  \
    if (what < 0) kill(getpid(), SIGKILL);                           \
    return result;

static int opens(int flags) { return flags & (O_CREAT | O_TRUNC); }

#define OPEN(name)                                                   \
    int name(const char *path, int flags, ...) {                     \
        va_list rest; va_start(rest, flags);                         \
        int mode = va_arg(rest, int); va_end(rest);                  \
        REAL(int, #name, const char *, int, ...);                    \
        CHANGE(opens(flags) && at_is_below(AT_FDCWD, path), "open", real(path, flags, mode)) \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                 \
    int name(int folder, const char *path, int flags, ...) {         \
        va_list rest; va_start(rest, flags);                         \
        int mode = va_arg(rest, int); va_end(rest);                  \
        REAL(int, #name, int, const char *, int, ...);               \
        CHANGE(opens(flags) && at_is_below(folder, path), "open", real(folder, path, flags, mode)) \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    int what = fd_is_below(fd) ? due("write") : 0;
    if (what > 0) { errno = what; return -1; }
    ssize_t result = real(fd, data, what == HALF ? size / 2 : size);
    if (what < 0) kill(getpid(), SIGKILL);
    return result;
}

#define PWRITE(name)                                                 \
    ssize_t name(int fd, const void *data, size_t size, off_t at) {  \
        REAL(ssize_t, #name, int, const void *, size_t, off_t);      \
        int what = fd_is_below(fd) ? due("write") : 0;               \
        if (what > 0) { errno = what; return -1; }                   \
        ssize_t result = real(fd, data, what == HALF ? size / 2 : size, at); \
        if (what < 0) kill(getpid(), SIGKILL);                       \
        return result;                                               \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

struct iovec;
ssize_t writev(int fd, const struct iovec *parts, int num) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    CHANGE(fd_is_below(fd), "write", real(fd, parts, num))
}
ssize_t pwritev(int fd, const struct iovec *parts, int num, off_t at) {
    REAL(ssize_t, "pwritev", int, const struct iovec *, int, off_t);
    CHANGE(fd_is_below(fd), "write", real(fd, parts, num, at))
}
int rename(const char *old, const char *new) {
    REAL(int, "rename", const char *, const char *);
    CHANGE(at_is_below(AT_FDCWD, new), "rename", real(old, new))
}
int renameat(int a, const char *old, int b, const char *new) {
    REAL(int, "renameat", int, const char *, int, const char *);
    CHANGE(at_is_below(b, new), "rename", real(a, old, b, new))
}
int renameat2(int a, const char *old, int b, const char *new, unsigned flags) {
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    CHANGE(at_is_below(b, new), "rename", real(a, old, b, new, flags))
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    CHANGE(at_is_below(AT_FDCWD, path), "unlink", real(path))
}
int unlinkat(int folder, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    CHANGE(at_is_below(folder, path), "unlink", real(folder, path, flags))
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    CHANGE(at_is_below(AT_FDCWD, path), "rmdir", real(path))
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    CHANGE(at_is_below(AT_FDCWD, path), "mkdir", real(path, mode))
}
int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    CHANGE(at_is_below(folder, path), "mkdir", real(folder, path, mode))
}
int ftruncate(int fd, off_t size) {
    REAL(int, "ftruncate", int, off_t);
    CHANGE(fd_is_below(fd), "truncate", real(fd, size))
}
int ftruncate64(int fd, off_t size) {
    REAL(int, "ftruncate64", int, off_t);
    CHANGE(fd_is_below(fd), "truncate", real(fd, size))
}
int fsync(int fd) {
    REAL(int, "fsync", int);
    CHANGE(fd_is_below(fd), "fsync", real(fd))
}
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    CHANGE(fd_is_below(fd), "fsync", real(fd))
}
int flock(int fd, int operation) {
    REAL(int, "flock", int, int);
    const char *how = getenv("CHANGES_HOW");
    if (how && !strcmp(how, "ENOLCK") && fd_is_below(fd)) { errno = ENOLCK; return -1; }
    return real(fd, operation);
}
