/* A request has no more inputs and outputs than a model takes.

   Of inputs that are too many tritonserver tells all names, in a text that it makes anew for each: those in 6 MB take half
   a minute. And each time that a request over HTTP asks for an output again takes 80 bytes for good. Loaded before
   Triton's own (LD_PRELOAD), these functions hear of each. A request is made in one thread, from its first call on. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef TRITONSERVER_Error *AddRequestedOutput(void *request, const char *name);

enum { INVALID_ARG = 3, MOST_INPUTS = 2, MOST_OUTPUTS = 1 }; /* No model has two inputs, but Triton says so better. */

/* Weak, as the stubs, which are loaded with this library, too, have no Triton. */
__attribute__((weak)) TRITONSERVER_Error *TRITONSERVER_ErrorNew(int code, const char *message);

static _Thread_local int inputs, outputs; /* of the request that this thread makes */

void begin_tensors(void) { inputs = outputs = 0; }

bool has_too_many_inputs(void) { return ++inputs > MOST_INPUTS; }

TRITONSERVER_Error *TRITONSERVER_InferenceRequestAddRequestedOutput(void *request, const char *name) {
  if (++outputs > MOST_OUTPUTS)
    return TRITONSERVER_ErrorNew(INVALID_ARG, "invalid_tensor: there is one output, to be asked for once");
  return ((AddRequestedOutput *)dlsym(RTLD_NEXT, "TRITONSERVER_InferenceRequestAddRequestedOutput"))(request, name);
}
