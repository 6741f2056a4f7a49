/* What clients have sent is told as their fault.

   Of JSON that cannot be read, or has other things in it than a request, tritonserver says that it has failed itself
   (HTTP 500), and of an unknown encoding or a long name of a sequence that it is not made for it (501). Loaded before
   Triton's own (LD_PRELOAD), this function makes a 400 of it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef TRITONSERVER_Error *ErrorNew(int code, const char *message);

enum { INVALID_ARG = 3 };

extern _Thread_local bool json_is_excessive;

static const char NO_JSON[] = "failed to parse the request JSON buffer: ";
static const char *const BEGINNINGS[] = {
    NO_JSON, "failed to get request params", "Unable to parse ", "Unable to set ", "attempt to ", "parameter key ",
    "Unsupported compression type", "string correlation ID ",
};

static bool begins(const char *message, const char *beginning) {
  return strncmp(message, beginning, strlen(beginning)) == 0;
}

TRITONSERVER_Error *TRITONSERVER_ErrorNew(int code, const char *message) {
  ErrorNew *error_new = (ErrorNew *)dlsym(RTLD_NEXT, "TRITONSERVER_ErrorNew");
  for (size_t index = 0; index < sizeof BEGINNINGS / sizeof *BEGINNINGS; index++)
    if (begins(message, BEGINNINGS[index])) code = INVALID_ARG;
  if (json_is_excessive && begins(message, NO_JSON)) {
    message = "failed to parse the request JSON buffer: it is nested over 1000 levels deep, has over 4096 members, or more"
              " values than the largest batch";
    json_is_excessive = false;
  }
  return error_new(code, message);
}
