/* Memory that tritonserver takes holds nothing of others' requests.

   Where the first line of an HTTP request comes in two pieces, Triton's parser reads one byte past the first one and
   repeats it: a byte of what others have sent, also of their tokens. Loaded before glibc (LD_PRELOAD), this clears memory
   of the sizes that its buffers have. From 128 KiB on (MALLOC_MMAP_THRESHOLD_) it is clean pages of the kernel's, and
   writing to them would make real what a client only announces. */

#include <stddef.h>
#include <string.h>

enum { LEAST = 512, MOST = 128 * 1024 };

void got_memory(void *memory, size_t size);
void *__libc_malloc(size_t size);

void *malloc(size_t size) {
  void *memory = __libc_malloc(size);
  if (memory != NULL && size >= LEAST && size < MOST) memset(memory, 0, size);
  got_memory(memory, size);
  return memory;
}
