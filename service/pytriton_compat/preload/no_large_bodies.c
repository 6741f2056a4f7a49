/* No request over HTTP takes more memory than the largest batch.

   tritonserver reads bodies of any size, and by one of 2 GiB, whose length its 32 bits do not hold, it ends. It keeps them
   in pieces of 1 KiB and more, one for each chunk and for each time that it reads, be it a single byte, and with so many
   that a list of them does not fit onto the stack it ends, too. It reads HTTP by `readv` and answers by `writev` alone:
   loaded before glibc's (LD_PRELOAD), these functions know what each connection's request takes. */

#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

void free_lost_bodies(void);

enum { MOST_FILES = 1 << 20, PIECE = 1024 };

static const char TOO_LARGE[] =
    "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n"
    "{\"error\":\"too_many_bytes: the request is larger than the largest batch\"}";

static size_t taken[MOST_FILES]; /* since the last answer, by file descriptor */
static size_t most = INT_MAX;

__attribute__((constructor)) static void read_most(void) {
  const char *text = getenv("EMBED_LARGEST_REQUEST");
  if (text != NULL && strtoull(text, NULL, 10) < most) most = strtoull(text, NULL, 10);
}

/* How many lines are nothing but the length of a chunk. */
static size_t count_chunks(const char *next, const char *end) {
  size_t chunks = 0;
  for (const char *line_end; (line_end = memchr(next, '\n', (size_t)(end - next))) != NULL; next = line_end + 1) {
    const char *digit = next;
    while (isxdigit((unsigned char)*digit)) digit++;
    chunks += digit > next && *digit == '\r' && digit + 1 == line_end;
  }
  return chunks;
}

ssize_t readv(int file, const struct iovec *buffers, int count) {
  free_lost_bodies();
  ssize_t size = syscall(SYS_readv, file, buffers, count);
  if (size <= 0 || file >= MOST_FILES) return size;
  taken[file] += size < PIECE ? PIECE : (size_t)size;
  for (size_t left = (size_t)size; left > 0; buffers++) {
    size_t part = buffers->iov_len < left ? buffers->iov_len : left;
    taken[file] += PIECE * count_chunks(buffers->iov_base, (const char *)buffers->iov_base + part);
    left -= part;
  }
  if (taken[file] <= most) return size;
  send(file, TOO_LARGE, sizeof TOO_LARGE - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
  errno = ECONNRESET;
  return -1;
}

ssize_t writev(int file, const struct iovec *buffers, int count) {
  ssize_t size = syscall(SYS_writev, file, buffers, count);
  if (size > 0 && file < MOST_FILES) taken[file] = 0;
  return size;
}

int accept4(int listener, struct sockaddr *address, socklen_t *size, int flags) {
  long file = syscall(SYS_accept4, listener, address, size, flags);
  if (file >= 0 && file < MOST_FILES) taken[file] = 0;
  return (int)file;
}
