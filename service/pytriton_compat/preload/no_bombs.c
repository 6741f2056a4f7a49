/* What comes compressed does not become large out of nothing.

   A message of 2 MB may become 2 GB, over gRPC before tritonserver looks at a token; over HTTP, 2 GiB end it. Loaded
   before zlib's own (LD_PRELOAD), this function goes on beyond some size only with what compresses as texts and numbers
   do, and stays below that. */

#include <dlfcn.h>
#include <limits.h>
#include <stddef.h>

/* z_stream, of zlib.h, which need not be there. */
struct stream {
  const unsigned char *next_in;
  unsigned int available_in;
  unsigned long total_in;
  unsigned char *next_out;
  unsigned int available_out;
  unsigned long total_out;
};

void writes_body(const unsigned char *next);

enum { ALWAYS = 1 << 26, MOST_TIMES = 32, DATA_ERROR = -3 };

int inflate(struct stream *stream, int flush) {
  static int (*zlibs)(struct stream *, int);
  /* Not by RTLD_NEXT: where a module of Python's has loaded zlib, it does not come next. */
  if (zlibs == NULL) zlibs = dlsym(dlopen("libz.so.1", RTLD_LAZY), "inflate");
  if (stream->total_out > ALWAYS && stream->total_out / MOST_TIMES > stream->total_in) return DATA_ERROR;
  if (stream->total_out + stream->available_out > INT_MAX) return DATA_ERROR;
  writes_body(stream->next_out);
  return zlibs(stream, flush);
}
