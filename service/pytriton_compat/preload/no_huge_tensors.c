/* A request for more numbers than the largest request has is refused, and does not end tritonserver.

   For numbers in JSON it takes the memory that their shape asks for, before it looks at them: more than there is, or,
   where the size overflows 64 bits, less than it then fills, over what others have there. Loaded before Triton's own
   (LD_PRELOAD), this function hears of each shape first. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef struct TRITONSERVER_InferenceRequest TRITONSERVER_InferenceRequest;
typedef TRITONSERVER_Error *AddInput(TRITONSERVER_InferenceRequest *, const char *, int, const int64_t *, uint64_t);

enum { INVALID_ARG = 3 };

bool has_too_many_inputs(void);
void begin_input(int datatype);

/* Weak, as the stubs, which are loaded with this library, too, have no Triton. */
__attribute__((weak)) TRITONSERVER_Error *TRITONSERVER_ErrorNew(int code, const char *message);
__attribute__((weak)) uint32_t TRITONSERVER_DataTypeByteSize(int datatype);

/* Strings have no size of their own, nor has an unknown type; a negative side is more than any. */
static bool is_huge(uint32_t size, const int64_t *shape, uint64_t dimensions) {
  const char *most = getenv("EMBED_LARGEST_TENSOR");
  if (size == 0 || most == NULL) return false;
  uint64_t left = strtoull(most, NULL, 10) / size;
  for (uint64_t index = 0; index < dimensions; index++)
    if (shape[index] != 0) left /= (uint64_t)shape[index];
  return left == 0;
}

TRITONSERVER_Error *TRITONSERVER_InferenceRequestAddInput(
    TRITONSERVER_InferenceRequest *request, const char *name, int datatype, const int64_t *shape, uint64_t dimensions) {
  begin_input(datatype);
  if (has_too_many_inputs()) return TRITONSERVER_ErrorNew(INVALID_ARG, "invalid_tensor: there is one input");
  if (is_huge(TRITONSERVER_DataTypeByteSize(datatype), shape, dimensions))
    return TRITONSERVER_ErrorNew(INVALID_ARG, "invalid_tensor: the shape has more numbers than the largest batch");
  AddInput *add_input = (AddInput *)dlsym(RTLD_NEXT, "TRITONSERVER_InferenceRequestAddInput");
  return add_input(request, name, datatype, shape, dimensions);
}
