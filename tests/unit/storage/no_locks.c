/* Preloaded, it stands for a file system without locks: flock fails with NOLOCK_ERRNO. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/file.h>

int flock(int descriptor, int operation) {
    const char *number = getenv("NOLOCK_ERRNO");
    (void)descriptor;
    (void)operation;
    errno = number ? atoi(number) : ENOLCK;
    return -1;
}
