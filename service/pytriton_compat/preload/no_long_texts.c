/* A request with a long text as its id or in its parameters, or with many of them, is refused.

   These go through shared memory with each image, and are no part of what a batch may have (`batch_strategy.c`): a few
   of a hundred megabytes hold up a lane until the service takes it for dead, and others lose their answers. Loaded
   before Triton's own (LD_PRELOAD), these functions hear of each text first. A request is made in one thread, from its
   first call on. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef TRITONSERVER_Error *New(void **request, void *server, const char *model, int64_t version);
typedef TRITONSERVER_Error *SetId(void *request, const char *id);

enum { INVALID_ARG = 3, EACH = 1 << 10, MOST = 1 << 20 };

void begin_input(int datatype);
void begin_tensors(void);

/* Weak, as the stubs, which are loaded with this library, too, have no Triton. */
__attribute__((weak)) TRITONSERVER_Error *TRITONSERVER_ErrorNew(int code, const char *message);

static _Thread_local size_t size; /* of the texts of the request that this thread makes */

static TRITONSERVER_Error *count(const char *text, const char *more) {
  size += EACH + strlen(text) + strlen(more);
  if (size <= MOST) return NULL;
  return TRITONSERVER_ErrorNew(
      INVALID_ARG, "invalid_parameter: there are a thousand parameters, or over 1 MiB of text in them and the id");
}

TRITONSERVER_Error *TRITONSERVER_InferenceRequestNew(void **request, void *server, const char *model, int64_t version) {
  size = 0;
  begin_input(0);
  begin_tensors();
  return ((New *)dlsym(RTLD_NEXT, "TRITONSERVER_InferenceRequestNew"))(request, server, model, version);
}

TRITONSERVER_Error *TRITONSERVER_InferenceRequestSetId(void *request, const char *id) {
  TRITONSERVER_Error *error = count(id, "");
  return error != NULL ? error : ((SetId *)dlsym(RTLD_NEXT, "TRITONSERVER_InferenceRequestSetId"))(request, id);
}

#define COUNTED(NAME, TYPE, TEXT)                                                        \
  TRITONSERVER_Error *NAME(void *request, const char *key, TYPE value) {                 \
    typedef TRITONSERVER_Error *Set(void *, const char *, TYPE);                         \
    TRITONSERVER_Error *error = count(key, TEXT);                                        \
    return error != NULL ? error : ((Set *)dlsym(RTLD_NEXT, #NAME))(request, key, value); \
  }

COUNTED(TRITONSERVER_InferenceRequestSetStringParameter, const char *, value)
COUNTED(TRITONSERVER_InferenceRequestSetIntParameter, int64_t, "")
COUNTED(TRITONSERVER_InferenceRequestSetBoolParameter, bool, "")
COUNTED(TRITONSERVER_InferenceRequestSetDoubleParameter, double, "")
