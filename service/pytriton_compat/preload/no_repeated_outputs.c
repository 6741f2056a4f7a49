/* A request that asks for its output again is refused.

   Over HTTP each time takes 80 bytes of tritonserver's memory, for good: four times what it takes to ask. Loaded before
   Triton's own (LD_PRELOAD), this function hears of each time; no model here has two outputs. A request is made in one
   thread, from its first call on. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef TRITONSERVER_Error *AddRequestedOutput(void *request, const char *name);

enum { INVALID_ARG = 3 };

/* Weak, as the stubs, which are loaded with this library, too, have no Triton. */
__attribute__((weak)) TRITONSERVER_Error *TRITONSERVER_ErrorNew(int code, const char *message);

static _Thread_local bool has_output; /* the request that this thread makes */

void begin_outputs(void) { has_output = false; }

TRITONSERVER_Error *TRITONSERVER_InferenceRequestAddRequestedOutput(void *request, const char *name) {
  if (has_output) return TRITONSERVER_ErrorNew(INVALID_ARG, "invalid_tensor: there is one output, to be asked for once");
  has_output = true;
  return ((AddRequestedOutput *)dlsym(RTLD_NEXT, "TRITONSERVER_InferenceRequestAddRequestedOutput"))(request, name);
}
