/* A disk that misbehaves, for one process: preloaded before the C library.
 *
 * Only what is below REGROUND_DISK_ROOT is touched. REGROUND_DISK_CONTROL is a file of six 64-bit numbers that the test changes
 * while the process runs:
 *   0  full: what would take space fails with ENOSPC. After this many bytes more, where it is above 1.
 *   1  read only: what would change anything fails with EROFS
 *   2  seconds that the system's clock is off
 *   3  power: the process is killed before the n-th flush from now; 0: never
 *   4  flushes so far
 *   5  errors: flushes fail with EIO and keep nothing (1), so does what would change anything (2)
 * With REGROUND_DISK_MIRROR, what a power cut would leave is kept there, by POSIX's letter: a file's bytes as they were when it
 * was last flushed (fN, N its inode), and a directory's entries as they were when the directory was last flushed (dN). What is
 * removed stays alive in grave/, so that no inode is used twice. sync_file_range is no flush: it leaves out the length of the
 * file and the cache of the disk. Between two flushes writes may reach the disk in any order: a file is copied while others write. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { FULL, READ_ONLY, CLOCK, POWER, FLUSHES, ERRORS, NUMBERS };

static volatile int64_t nothing[NUMBERS];
static volatile int64_t *control = nothing;
static const char *root, *mirror;
static size_t root_length;
static int64_t graves;

#define REAL(name) ((__typeof__(&name))real(&name##_pointer, #name))
#define POINTER(name) static void *name##_pointer
POINTER(open64); POINTER(openat64); POINTER(write); POINTER(writev); POINTER(pwrite64); POINTER(ftruncate64);
POINTER(mkdir); POINTER(rename); POINTER(link); POINTER(linkat); POINTER(unlink);
POINTER(unlinkat); POINTER(rmdir); POINTER(fsync); POINTER(fdatasync); POINTER(clock_gettime); POINTER(copy_file_range);

static void *real(void **pointer, const char *name) {
    if (!*pointer) *pointer = dlsym(RTLD_NEXT, name);
    return *pointer;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("REGROUND_DISK_CONTROL");
    root = getenv("REGROUND_DISK_ROOT");
    mirror = getenv("REGROUND_DISK_MIRROR");
    if (!path || !root) return;
    root_length = strlen(root);
    int file = REAL(open64)(path, O_RDWR | O_CLOEXEC);
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof nothing, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) {
        fprintf(stderr, "the disk's control file cannot be mapped\n");
        abort();
    }
    close(file);
    control = mapped;
}

/* Absolute path of a name relative to a directory's descriptor. */
static int absolute(int at, const char *path, char *out) {
    char place[PATH_MAX], name[64];
    if (path[0] == '/') return snprintf(out, PATH_MAX, "%s", path) < PATH_MAX;
    if (at == AT_FDCWD) {
        if (!getcwd(place, sizeof place)) return 0;
    } else {
        snprintf(name, sizeof name, "/proc/self/fd/%d", at);
        ssize_t length = readlink(name, place, sizeof place - 1);
        if (length < 0) return 0;
        place[length] = 0;
    }
    return snprintf(out, PATH_MAX, "%s/%s", place, path) < PATH_MAX;
}

static int below(const char *path) {
    return root && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

static int is_ours_at(int at, const char *path) {
    char full[PATH_MAX];
    return root && absolute(at, path, full) && below(full);
}

static int is_ours(int file) {
    char full[PATH_MAX], name[64];
    if (!root) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t length = readlink(name, full, sizeof full - 1);
    if (length < 0) return 0;
    full[length] = 0;
    return below(full);
}

static int fails(int error) {
    errno = error;
    return -1;
}

/* How many of some bytes there is still room for. */
static size_t room(size_t bytes) {
    int64_t left = control[FULL];
    if (left == 0) return bytes;
    if (left == 1) return 0;
    size_t taken = bytes < (size_t)(left - 1) ? bytes : (size_t)(left - 1);
    control[FULL] = left - (int64_t)taken;
    return taken;
}

/* Whether a change may be refused. */
static int is_sick(void) { return control[FULL] || control[READ_ONLY] || control[ERRORS] > 1; }

static int refused(int takes_space) {
    if (control[ERRORS] > 1) return EIO;
    if (control[READ_ONLY]) return EROFS;
    return takes_space && control[FULL] == 1 ? ENOSPC : 0;
}

/* ---- power ---- */

static void keep(int file, uint64_t inode) {
    char path[PATH_MAX], beside[PATH_MAX], bytes[1 << 16];
    static int64_t count;
    snprintf(path, sizeof path, "%s/f%lu", mirror, (unsigned long)inode);
    snprintf(beside, sizeof beside, "%s/tmp%ld", mirror, (long)__sync_fetch_and_add(&count, 1));
    int to = REAL(open64)(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (to < 0) abort();
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    /* The descriptor may be for writing only. */
    int from = REAL(open64)(name, O_RDONLY | O_CLOEXEC);
    if (from < 0) abort();
    for (off64_t at = 0;;) {
        ssize_t length = pread64(from, bytes, sizeof bytes, at);
        if (length < 0) abort();
        if (length == 0) break;
        if (REAL(write)(to, bytes, (size_t)length) != length) abort();
        at += length;
    }
    close(from);
    close(to);
    if (REAL(rename)(beside, path)) abort();
}

static void keep_entries(int file, uint64_t inode) {
    char path[PATH_MAX], beside[PATH_MAX], name[64];
    snprintf(path, sizeof path, "%s/d%lu", mirror, (unsigned long)inode);
    snprintf(beside, sizeof beside, "%s/tmpd%d-%lu", mirror, gettid(), (unsigned long)inode);
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    DIR *directory = opendir(name);
    FILE *to = fopen(beside, "we");
    if (!directory || !to) abort();
    for (struct dirent64 *entry; (entry = readdir64(directory));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char kind = entry->d_type == DT_DIR ? 'd' : 'f';
        fprintf(to, "%c %lu %s\n", kind, (unsigned long)entry->d_ino, entry->d_name);
    }
    closedir(directory);
    if (fclose(to) || REAL(rename)(beside, path)) abort();
}

static int flush(int file, int (*flush_file)(int)) {
    if (!is_ours(file)) return flush_file(file);
    if (control[ERRORS]) return fails(EIO);
    __sync_fetch_and_add(&control[FLUSHES], 1);
    if (control[POWER] && __sync_sub_and_fetch(&control[POWER], 1) == 0) {
        raise(SIGKILL);
        for (;;) pause();
    }
    if (!mirror) return flush_file(file);
    struct stat64 found;
    if (fstat64(file, &found)) abort();
    /* One after the other: what a flush that is over has kept must not be replaced by an older copy of another thread's. */
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&one_at_a_time);
    if (S_ISDIR(found.st_mode)) keep_entries(file, found.st_ino);
    else keep(file, found.st_ino);
    pthread_mutex_unlock(&one_at_a_time);
    return 0;
}

int fsync(int file) { return flush(file, REAL(fsync)); }
int fdatasync(int file) { return flush(file, REAL(fdatasync)); }

/* What goes by this name stays alive. */
static void bury(int at, const char *path) {
    char grave[PATH_MAX];
    if (!mirror || !is_ours_at(at, path)) return;
    snprintf(grave, sizeof grave, "%s/grave/%ld", mirror, (long)__sync_fetch_and_add(&graves, 1) + getpid() * 1000000L);
    REAL(linkat)(at, path, AT_FDCWD, grave, 0);
}

/* ---- space ---- */

static int open_at(int at, const char *path, int flags, mode_t mode) {
    if ((flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY) {
        if (is_sick() && is_ours_at(at, path)) {
            int creates = (flags & O_CREAT) && faccessat(at, path, F_OK, 0);
            int error = refused(creates);
            if (error) return fails(error);
        }
    }
    return REAL(openat64)(at, path, flags, mode);
}

static mode_t mode_of(int flags, va_list more) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; }

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = mode_of(flags, more);
    va_end(more);
    return open_at(AT_FDCWD, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = mode_of(flags, more);
    va_end(more);
    return open_at(at, path, flags, mode);
}

int open(const char *path, int flags, ...) __attribute__((alias("open64")));
int openat(int at, const char *path, int flags, ...) __attribute__((alias("openat64")));

ssize_t write(int file, const void *bytes, size_t count) {
    if (is_sick() && is_ours(file)) {
        if (refused(0)) return fails(refused(0));
        size_t fits = room(count);
        if (fits == 0 && count > 0) return fails(ENOSPC);
        count = fits;
    }
    return REAL(write)(file, bytes, count);
}

ssize_t writev(int file, const struct iovec *pieces, int count) {
    if (is_sick() && is_ours(file)) return count ? write(file, pieces->iov_base, pieces->iov_len) : 0;
    return REAL(writev)(file, pieces, count);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
    if (is_sick() && is_ours(file)) {
        struct stat64 found;
        if (refused(0)) return fails(refused(0));
        /* Bytes that the file has already take no room. */
        size_t has = fstat64(file, &found) || at >= found.st_size ? 0 : (size_t)(found.st_size - at);
        size_t fits = count <= has ? count : has + room(count - has);
        if (fits == 0 && count > 0) return fails(ENOSPC);
        count = fits;
    }
    return REAL(pwrite64)(file, bytes, count, at);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) __attribute__((alias("pwrite64")));

int ftruncate64(int file, off64_t length) {
    int error = is_sick() && is_ours(file) ? refused(1) : 0;
    return error ? fails(error) : REAL(ftruncate64)(file, length);
}

int ftruncate(int file, off_t length) __attribute__((alias("ftruncate64")));

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t length, unsigned flags) {
    /* The caller goes on with reading and writing. */
    if (is_sick() && is_ours(to)) return fails(ENOSYS);
    return REAL(copy_file_range)(from, from_at, to, to_at, length, flags);
}

/* ---- names ---- */

#define CHECK(at, path, takes_space)                                                            \
    if (is_sick() && is_ours_at(at, path) && refused(takes_space)) \
        return fails(refused(takes_space))

int mkdir(const char *path, mode_t mode) {
    CHECK(AT_FDCWD, path, 1);
    int made = REAL(mkdir)(path, mode);
    struct stat64 found;
    if (!made && mirror && is_ours_at(AT_FDCWD, path) && !stat64(path, &found)) {
        char entries[PATH_MAX];
        /* Directories cannot be kept alive: this inode may have been another one's. */
        snprintf(entries, sizeof entries, "%s/d%lu", mirror, (unsigned long)found.st_ino);
        REAL(unlink)(entries);
    }
    return made;
}

int rename(const char *from, const char *to) {
    CHECK(AT_FDCWD, to, 1);
    bury(AT_FDCWD, to);
    return REAL(rename)(from, to);
}

int link(const char *from, const char *to) {
    CHECK(AT_FDCWD, to, 1);
    return REAL(link)(from, to);
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    CHECK(to_at, to, 1);
    return REAL(linkat)(from_at, from, to_at, to, flags);
}

int unlink(const char *path) {
    CHECK(AT_FDCWD, path, 0);
    bury(AT_FDCWD, path);
    return REAL(unlink)(path);
}

int unlinkat(int at, const char *path, int flags) {
    CHECK(at, path, 0);
    if (!(flags & AT_REMOVEDIR)) bury(at, path);
    return REAL(unlinkat)(at, path, flags);
}

int rmdir(const char *path) {
    CHECK(AT_FDCWD, path, 0);
    return REAL(rmdir)(path);
}

/* ---- time ---- */

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += control[CLOCK];
    return result;
}
