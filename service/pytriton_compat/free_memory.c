/* Memory that tritonserver has freed goes back to the system.

   glibc keeps what is freed between pieces that are still used, and bursts of requests leave more and more of it. Only
   what runs within tritonserver can tell it to let go, which takes a millisecond or two. */

#include <malloc.h>
#include <time.h>

enum { PAUSE_SECONDS = 1 };
static time_t last;

/* Does it, unless that was in the same second. One thread calls it. */
void give_back_free_memory(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (now.tv_sec - last < PAUSE_SECONDS) return;
  last = now.tv_sec;
  malloc_trim(0);
}
