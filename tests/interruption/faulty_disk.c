// Intercepts a program's calls of the C library (LD_PRELOAD) and simulates disk failures.
//
// FAULTY_DISK is MODE:N. Operations on regular files are counted from 1: write, fsync, rename, link, unlink.
//   count    nothing fails; at the end the number of operations is written to the file FAULTY_DISK_COUNT
//   kill     SIGKILL instead of operation N
//   interrupt SIGINT before operation N
//   full     starting at operation N, the disk is full
//   broken   starting at operation N, every operation fails with an input/output error
//   once     only operation N fails with an input/output error
//   readonly starting at operation N, nothing can be written, as on a file system that became read-only after an error
//   slow     every operation takes N milliseconds
//   short    every write writes only part of its data
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long operations;
static char mode[16];
static long position;

__attribute__((constructor)) static void begin(void) {
    const char *setting = getenv("FAULTY_DISK");
    if (setting != NULL) sscanf(setting, "%15[a-z]:%ld", mode, &position);
}

__attribute__((destructor)) static void end(void) {
    const char *path = getenv("FAULTY_DISK_COUNT");
    if (path == NULL || strcmp(mode, "count") != 0) return;
    FILE *file = fopen(path, "w");
    if (file == NULL) return;
    fprintf(file, "%ld", atomic_load(&operations));
    fclose(file);
}

static int is_mode(const char *name) { return strcmp(mode, name) == 0; }

// Returns whether this operation fails, and sets errno if it does.
static int fails(int needs_room) {
    const long number = atomic_fetch_add(&operations, 1) + 1;
    if (is_mode("kill") && number == position) kill(getpid(), SIGKILL);
    if (is_mode("interrupt") && number == position) kill(getpid(), SIGINT);
    if ((is_mode("broken") && number >= position) || (is_mode("once") && number == position)) {
        errno = EIO;
        return 1;
    }
    if (is_mode("slow")) usleep(1000 * (useconds_t)position);
    if (is_mode("readonly") && number >= position) {
        errno = EROFS;
        return 1;
    }
    if (is_mode("full") && number >= position && needs_room) {
        errno = ENOSPC;
        return 1;
    }
    return 0;
}

static int is_file(int descriptor) {
    struct stat found;
    return descriptor > 2 && fstat(descriptor, &found) == 0 && S_ISREG(found.st_mode);
}

#define NEXT(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void *bytes, size_t count) {
    if (is_file(descriptor)) {
        if (fails(1)) return -1;
        if (is_mode("short") && count > 1) count = 1 + count / 3;
    }
    return NEXT(write)(descriptor, bytes, count);
}

int fsync(int descriptor) {
    if (is_file(descriptor) && fails(0)) return -1;
    return NEXT(fsync)(descriptor);
}

int rename(const char *from, const char *to) {
    if (fails(1)) return -1;
    return NEXT(rename)(from, to);
}

int link(const char *from, const char *to) {
    if (fails(1)) return -1;
    return NEXT(link)(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    if (fails(1)) return -1;
    return NEXT(linkat)(from_folder, from, to_folder, to, flags);
}

int unlink(const char *path) {
    if (fails(0)) return -1;
    return NEXT(unlink)(path);
}
