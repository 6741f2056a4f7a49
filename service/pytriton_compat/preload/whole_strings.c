/* Of a tensor of strings, each length is in one piece, and no string is cut short.

   Each string follows its length. Over HTTP a tensor comes in the pieces in which it was read, and Triton refuses it
   where a length begins in one of them and ends in the next: 4 of 100 requests of 60 images. There the two exchange some
   bytes. And Triton does not see that the last string is shorter than its length says: its Python backend then refuses
   the whole batch, and forgets 200 bytes. Loaded before Triton's own (LD_PRELOAD), these functions hear of each piece
   first. A request is made in one thread, from its first call on. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef TRITONSERVER_Error *Append(void *request, const char *name, const void *piece, size_t size, int memory, int64_t);
typedef TRITONSERVER_Error *AppendWith(void *request, const char *name, const void *piece, void *attributes);
typedef TRITONSERVER_Error *InferAsync(void *server, void *request, void *trace);

enum { TYPE_BYTES = 13, MEMORY_GPU = 2, INVALID_ARG = 3 };

/* Weak, as the stubs, which are loaded with this library, too, have no Triton. */
__attribute__((weak)) TRITONSERVER_Error *TRITONSERVER_ErrorNew(int code, const char *message);
__attribute__((weak)) TRITONSERVER_Error *TRITONSERVER_BufferAttributesByteSize(void *attributes, size_t *size);
__attribute__((weak)) TRITONSERVER_Error *TRITONSERVER_BufferAttributesMemoryType(void *attributes, int *memory);

/* Of the input that this thread is given. */
static _Thread_local bool are_strings;
static _Thread_local size_t missing;    /* bytes of the last string that are to come */
static _Thread_local char *begun;       /* what the last piece ends with, if that is the beginning of a length */
static _Thread_local size_t begun_size;

void begin_input(int datatype) {
  are_strings = datatype == TYPE_BYTES;
  missing = begun_size = 0;
}

static uint32_t read_length(const char *place) {
  uint32_t length;
  memcpy(&length, place, sizeof length);
  return length;
}

static void look_through(char *next, size_t left) {
  for (;;) {
    const size_t taken = missing < left ? missing : left;
    next += taken, left -= taken, missing -= taken;
    if (left < sizeof(uint32_t)) break;
    missing = read_length(next);
    next += sizeof(uint32_t), left -= sizeof(uint32_t);
  }
  begun = next, begun_size = left;
}

/* Whether what has begun is now the string's beginning, and the piece begins with its whole length. */
static bool exchange(char *piece, size_t size) {
  char both[2 * sizeof(uint32_t)];
  if (size < sizeof(uint32_t)) return false;
  memcpy(both, begun, begun_size);
  memcpy(both + begun_size, piece, sizeof(uint32_t));
  missing = read_length(both);
  if (missing < begun_size) return false; /* no image is as short */
  memcpy(piece, both, sizeof(uint32_t));
  memcpy(begun, both + sizeof(uint32_t), begun_size);
  missing -= begun_size;
  return true;
}

TRITONSERVER_Error *TRITONSERVER_InferenceRequestAppendInputData(
    void *request, const char *name, const void *bytes, size_t size, int memory, int64_t device) {
  static Append *append;
  if (append == NULL) append = (Append *)dlsym(RTLD_NEXT, "TRITONSERVER_InferenceRequestAppendInputData");
  if (!are_strings || memory == MEMORY_GPU || size == 0) return append(request, name, bytes, size, memory, device);
  char *piece = (char *)bytes;
  TRITONSERVER_Error *error = NULL;
  if (begun_size > 0) {
    const size_t whole = exchange(piece, size) ? sizeof(uint32_t) : 0;
    if (whole > 0) error = append(request, name, piece, whole, memory, device);
    if (error == NULL) error = append(request, name, begun, begun_size, memory, device);
    piece += whole, size -= whole;
  }
  look_through(piece, size);
  if (error != NULL || size == begun_size) return error;
  return append(request, name, piece, size - begun_size, memory, device);
}

TRITONSERVER_Error *TRITONSERVER_InferenceRequestAppendInputDataWithBufferAttributes(
    void *request, const char *name, const void *bytes, void *attributes) {
  static AppendWith *append;
  if (append == NULL)
    append = (AppendWith *)dlsym(RTLD_NEXT, "TRITONSERVER_InferenceRequestAppendInputDataWithBufferAttributes");
  size_t size = 0;
  int memory = 0;
  TRITONSERVER_BufferAttributesByteSize(attributes, &size);
  TRITONSERVER_BufferAttributesMemoryType(attributes, &memory);
  if (are_strings && memory != MEMORY_GPU) look_through((char *)bytes, size);
  return append(request, name, bytes, attributes);
}

TRITONSERVER_Error *TRITONSERVER_ServerInferAsync(void *server, void *request, void *trace) {
  if (missing > 0 || begun_size > 0)
    return TRITONSERVER_ErrorNew(INVALID_ARG, "invalid_tensor: the strings' lengths do not add up to the tensor's size");
  return ((InferAsync *)dlsym(RTLD_NEXT, "TRITONSERVER_ServerInferAsync"))(server, request, trace);
}
