/* What a compressed body becomes is freed with its request, also where that is refused.

   tritonserver forgets it where it cannot read the request's JSON, or its Inference-Header-Content-Length: few bytes
   would take up to 64 MiB for good. Loaded before Triton's own (LD_PRELOAD), this counts what `no_bombs.c` has written to
   as forgotten, unless Triton is told whom to call when it has done with the request. That and all else happens in one
   thread, which reads from its connections only in between. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef TRITONSERVER_Error *SetReleaseCallback(void *request, void *release, void *userp);

/* A piece is as large as what it comes from, or LARGE: few make as much as there may be. */
enum { LARGE = 1 << 20, MOST_PIECES = 128 };

static _Thread_local char *newest; /* memory that this thread has got, and its size */
static _Thread_local size_t newest_size;
static _Thread_local void *pieces[MOST_PIECES];
static _Thread_local size_t count;

void got_memory(void *memory, size_t size) {
  if (memory != NULL && size >= LARGE) newest = memory, newest_size = size;
}

void writes_body(const unsigned char *next) {
  const size_t offset = (size_t)((const char *)next - newest);
  if (offset >= newest_size || count == MOST_PIECES || (count > 0 && pieces[count - 1] == newest)) return;
  pieces[count++] = newest;
}

void free_lost_bodies(void) {
  while (count > 0) free(pieces[--count]);
  newest_size = 0;
}

TRITONSERVER_Error *TRITONSERVER_InferenceRequestSetReleaseCallback(void *request, void *release, void *userp) {
  count = newest_size = 0;
  return ((SetReleaseCallback *)dlsym(RTLD_NEXT, "TRITONSERVER_InferenceRequestSetReleaseCallback"))(
      request, release, userp);
}
