/* Which requests share a batch: no more than some megabytes of strings.

   A stub takes twice its largest batch of shared memory, for good: of 64 large photographs that would be some 600 MB.

   Triton loads this library beside the model (`batchstrategy.so`) and asks it about each request: its interface for
   custom batching, of tritonbackend.h, which PyTriton does not ship. One thread for each model does so, and each model
   has its own copy. Setup makes the library where it finds a C compiler. Without it, batches are bounded by their
   rows alone. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef struct TRITONBACKEND_Batcher TRITONBACKEND_Batcher;
typedef struct TRITONBACKEND_Input TRITONBACKEND_Input;
typedef struct TRITONBACKEND_Model TRITONBACKEND_Model;
typedef struct TRITONBACKEND_Request TRITONBACKEND_Request;

enum { TYPE_BYTES = 13 };

void give_back_free_memory(void);

void TRITONSERVER_ErrorDelete(TRITONSERVER_Error *error);
TRITONSERVER_Error *TRITONBACKEND_RequestInputCount(TRITONBACKEND_Request *request, uint32_t *count);
TRITONSERVER_Error *TRITONBACKEND_RequestInputByIndex(
    TRITONBACKEND_Request *request, uint32_t index, TRITONBACKEND_Input **input);
TRITONSERVER_Error *TRITONBACKEND_InputProperties(
    TRITONBACKEND_Input *input, const char **name, int *datatype, const int64_t **shape, uint32_t *dimensions,
    uint64_t *bytes, uint32_t *buffers);

static const uint64_t MOST_BYTES = 64 << 20;

/* Of the batch in the making: where Triton keeps its user pointer, by which it is known; its first request; whether it
   may hold requests from before the last `Initialize`; the bytes of strings that it may hold; and how many requests it
   has got since then. */
static void **current;
static TRITONBACKEND_Request *first;
static bool may_be_filled;
static uint64_t may_hold_bytes;
static uint32_t included;

static bool failed(TRITONSERVER_Error *error) {
  if (error != NULL) TRITONSERVER_ErrorDelete(error);
  return error != NULL;
}

static uint64_t bytes_of_strings(TRITONBACKEND_Request *request) {
  uint64_t sum = 0;
  uint32_t count;
  if (failed(TRITONBACKEND_RequestInputCount(request, &count))) return sum;
  for (uint32_t index = 0; index < count; index++) {
    TRITONBACKEND_Input *input;
    int datatype;
    uint64_t bytes;
    if (!failed(TRITONBACKEND_RequestInputByIndex(request, index, &input)) &&
        !failed(TRITONBACKEND_InputProperties(input, NULL, &datatype, NULL, NULL, &bytes, NULL)) &&
        datatype == TYPE_BYTES)
      sum += bytes;
  }
  return sum;
}

TRITONSERVER_Error *TRITONBACKEND_ModelBatchIncludeRequest(
    TRITONBACKEND_Request *request, void *batch, bool *should_include) {
  /* One that Triton asks about again has gone back into the queue, and all that came after it, too. */
  if (included == 0 && request == first) may_be_filled = false, may_hold_bytes = 0;
  const bool is_empty = !may_be_filled && included == 0;
  const uint64_t bytes = bytes_of_strings(request);
  /* Where it may be the first, it is never refused: Triton would ask again at once, and where there is none, for ever. */
  *should_include = included == 0 || may_hold_bytes + bytes <= MOST_BYTES;
  if (*should_include) {
    if (is_empty) first = request;
    included++, may_hold_bytes += bytes;
  }
  return NULL;
}

/* Triton may go on with a batch that it has handed over already, until a lane takes it, and then calls this with the
   same pointer. A new batch never has the pointer of the one before, which Triton lets go of only afterwards. */
TRITONSERVER_Error *TRITONBACKEND_ModelBatchInitialize(const TRITONBACKEND_Batcher *batcher, void **user_pointer) {
  give_back_free_memory();
  bool goes_on = user_pointer == current;
  may_be_filled = goes_on && (may_be_filled || included > 0);
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
