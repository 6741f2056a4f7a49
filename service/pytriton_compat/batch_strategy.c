/* Which requests share a batch: no more than some megabytes of strings, and whoever lies about the length of its last
   string is alone in its own.

   Triton's Python backend refuses a whole batch for one such lie, with a 400 for everybody in it, before any Python
   runs; Triton itself checks strings before that, but not whether the last one is as long as it says. And a stub takes
   twice its largest batch of shared memory, for good: of 64 large photographs that would be some 600 MB.

   Triton loads this library beside the model (`batchstrategy.so`) and asks it about each request: its interface for
   custom batching, of tritonbackend.h, which PyTriton does not ship. One thread for each model does so, and each model
   has its own copy. Setup makes the library where it finds a C compiler. Without it, neighbours of a lie have to send
   again, and batches are bounded by their rows alone. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef struct TRITONBACKEND_Batcher TRITONBACKEND_Batcher;
typedef struct TRITONBACKEND_Input TRITONBACKEND_Input;
typedef struct TRITONBACKEND_Model TRITONBACKEND_Model;
typedef struct TRITONBACKEND_Request TRITONBACKEND_Request;

enum { TYPE_BYTES = 13, MEMORY_GPU = 2 };

void give_back_free_memory(void);

void TRITONSERVER_ErrorDelete(TRITONSERVER_Error *error);
TRITONSERVER_Error *TRITONBACKEND_RequestInputCount(TRITONBACKEND_Request *request, uint32_t *count);
TRITONSERVER_Error *TRITONBACKEND_RequestInputByIndex(
    TRITONBACKEND_Request *request, uint32_t index, TRITONBACKEND_Input **input);
TRITONSERVER_Error *TRITONBACKEND_InputProperties(
    TRITONBACKEND_Input *input, const char **name, int *datatype, const int64_t **shape, uint32_t *dimensions,
    uint64_t *bytes, uint32_t *buffers);
TRITONSERVER_Error *TRITONBACKEND_InputBuffer(
    TRITONBACKEND_Input *input, uint32_t index, const void **buffer, uint64_t *bytes, int *memory, int64_t *device);

static const uint64_t MOST_BYTES = 64 << 20;

/* Of the batch in the making: where Triton keeps its user pointer, by which it is known; its first request; whether it
   may hold requests from before the last `Initialize`, or a lie; the bytes of strings that it may hold; and how many
   requests it has got since then. */
static void **current;
static TRITONBACKEND_Request *first;
static bool may_be_filled, may_hold_a_lie;
static uint64_t may_hold_bytes;
static uint32_t included;

/* An empty batch must get its first request, or its queue stands still. One that is handed over already, and must not
   get this one, is taken by a lane within milliseconds; Triton asks again at once until then. */
enum { MOST_SECONDS = 2 };
static time_t refused_since;

static bool failed(TRITONSERVER_Error *error) {
  if (error != NULL) TRITONSERVER_ErrorDelete(error);
  return error != NULL;
}

/* Whether fewer bytes follow than the last length announces. Strings, and the lengths before them, go on from one
   buffer to the next. */
static bool is_cut_short(TRITONBACKEND_Input *input, uint32_t buffers) {
  uint64_t missing = 0;
  for (uint32_t index = 0; index < buffers; index++) {
    const void *start;
    uint64_t left;
    int memory;
    int64_t device;
    if (failed(TRITONBACKEND_InputBuffer(input, index, &start, &left, &memory, &device)) || memory == MEMORY_GPU)
      return false;
    const char *next = start;
    for (;;) {
      uint64_t taken = missing < left ? missing : left;
      next += taken, left -= taken, missing -= taken;
      uint32_t length;
      if (left < sizeof length) break; /* Triton has refused lengths that are cut themselves. */
      memcpy(&length, next, sizeof length);
      next += sizeof length, left -= sizeof length, missing = length;
    }
  }
  return missing > 0;
}

typedef struct {
  uint64_t bytes;
  bool is_lie;
} Strings;

static Strings strings_of(TRITONBACKEND_Request *request) {
  Strings strings = {0, false};
  uint32_t count;
  if (failed(TRITONBACKEND_RequestInputCount(request, &count))) return strings;
  for (uint32_t index = 0; index < count; index++) {
    TRITONBACKEND_Input *input;
    int datatype;
    uint64_t bytes;
    uint32_t buffers;
    if (failed(TRITONBACKEND_RequestInputByIndex(request, index, &input)) ||
        failed(TRITONBACKEND_InputProperties(input, NULL, &datatype, NULL, NULL, &bytes, &buffers)) ||
        datatype != TYPE_BYTES)
      continue;
    strings.bytes += bytes;
    strings.is_lie = strings.is_lie || is_cut_short(input, buffers);
  }
  return strings;
}

static bool refuses_for_too_long(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (refused_since == 0) refused_since = now.tv_sec;
  return now.tv_sec - refused_since > MOST_SECONDS;
}

TRITONSERVER_Error *TRITONBACKEND_ModelBatchIncludeRequest(
    TRITONBACKEND_Request *request, void *batch, bool *should_include) {
  /* One that Triton asks about again has gone back into the queue, and all that came after it, too. */
  if (included == 0 && request == first) may_be_filled = may_hold_a_lie = false, may_hold_bytes = 0;
  const Strings strings = strings_of(request);
  const bool is_empty = !may_be_filled && included == 0, is_apart = strings.is_lie || may_hold_a_lie;
  /* Where it may be the first, its size is no reason to have Triton ask again. */
  const bool fits = included == 0 || may_hold_bytes + strings.bytes <= MOST_BYTES;
  *should_include = is_empty || (fits && !is_apart) || (included == 0 && refuses_for_too_long());
  if (*should_include) {
    if (is_empty) first = request;
    included++, refused_since = 0;
    may_hold_bytes += strings.bytes;
    may_hold_a_lie = may_hold_a_lie || strings.is_lie;
  }
  return NULL;
}

/* Triton may go on with a batch that it has handed over already, until a lane takes it, and then calls this with the
   same pointer. A new batch never has the pointer of the one before, which Triton lets go of only afterwards. */
TRITONSERVER_Error *TRITONBACKEND_ModelBatchInitialize(const TRITONBACKEND_Batcher *batcher, void **user_pointer) {
  give_back_free_memory();
  bool goes_on = user_pointer == current;
  may_be_filled = goes_on && (may_be_filled || included > 0);
  may_hold_a_lie = goes_on && may_hold_a_lie;
  may_hold_bytes = goes_on ? may_hold_bytes : 0;
  current = user_pointer, included = 0;
  *user_pointer = &included; /* any but NULL, which Triton takes for a batch that has ended */
  return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ModelBatchFinalize(void *batch) { return NULL; }

TRITONSERVER_Error *TRITONBACKEND_ModelBatcherInitialize(TRITONBACKEND_Batcher **batcher, TRITONBACKEND_Model *model) {
  return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ModelBatcherFinalize(TRITONBACKEND_Batcher *batcher) { return NULL; }
