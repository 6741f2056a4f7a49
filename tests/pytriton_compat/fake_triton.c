/* What `batch_strategy.c` asks of Triton, for requests with one input of strings. */

#include <stddef.h>
#include <stdint.h>

typedef struct {
  uint64_t bytes;
} Request;

void TRITONSERVER_ErrorDelete(void *error) {}

void *TRITONBACKEND_RequestInputCount(Request *request, uint32_t *count) {
  *count = 1;
  return NULL;
}

void *TRITONBACKEND_RequestInputByIndex(Request *request, uint32_t index, Request **input) {
  *input = request;
  return NULL;
}

void *TRITONBACKEND_InputProperties(
    Request *input, const char **name, int *datatype, const int64_t **shape, uint32_t *dimensions, uint64_t *bytes,
    uint32_t *buffers) {
  *datatype = 13, *bytes = input->bytes;
  return NULL;
}
