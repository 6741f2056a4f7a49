/* JSON that is nested deeply, or has more values or members than any request, is taken for JSON that ends early.

   Its parser, rapidjson, calls itself for each level, and a million of them need more than any stack, which ends
   tritonserver; of a value it makes 16 bytes and more, where its text may have two. A member is found by a look at all
   before it: 40,000 parameters, in 400 KB, take ten seconds, in which nobody else on that thread is answered. With the
   first value of a text it asks for memory by this function, loaded before glibc's (LD_PRELOAD). That is when the text
   is looked through, to which the parser keeps pointers on the stack, a few frames above. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void *__libc_realloc(void *memory, size_t size);

/* Whether the text that this thread reads has too much of these; `clients_faults.c` tells the client so. */
_Thread_local bool json_is_excessive;

/* It is 144 bytes above; so much of a stack can always be read, as the thread's own variables come behind it. */
enum { FIRST_BYTES = 1024, NEAR = 512, PAGE = 4096 };
enum { MOST_DEPTH = 1000, MOST_MEMBERS = 4096, MOST_OTHERS = 1 << 16, NUMBER_BYTES = 4 };

/* rapidjson::MemoryStream */
struct text {
  const char *next, *begin, *end;
  size_t size;
};

/* What comes behind the string whose first quote is the one before `next`. */
static const char *after_string(const char *next, const char *end) {
  const char *quote;
  while ((quote = memchr(next, '"', (size_t)(end - next))) != NULL) {
    const char *slash = quote;
    while (slash > next && slash[-1] == '\\') slash--;
    next = quote + 1;
    if ((quote - slash) % 2 == 0) return next;
  }
  return end;
}

/* As many as the largest tensor has numbers, and those beside them. */
static size_t most_values(void) {
  const char *bytes = getenv("EMBED_LARGEST_TENSOR");
  return bytes == NULL ? SIZE_MAX : strtoull(bytes, NULL, 10) / NUMBER_BYTES + MOST_OTHERS;
}

static bool is_excessive(const char *next, const char *end) {
  int depth = 1, members = 0;
  size_t values = 1, most = most_values();
  while (next < end && depth <= MOST_DEPTH && members <= MOST_MEMBERS && values <= most) {
    char letter = *next++;
    if (letter == '"')
      next = after_string(next, end);
    else if (letter == '[' || letter == '{')
      depth++;
    else if (letter == ']' || letter == '}')
      depth--;
    else if (letter == ':')
      members++;
    else if (letter == ',')
      values++;
  }
  return depth > MOST_DEPTH || members > MOST_MEMBERS || values > most;
}

/* Whether a place on the stack has such pointers, and not what was left there, to memory that may be gone. */
static bool is_text(const struct text *text) {
  uintptr_t page = (uintptr_t)text->begin / PAGE * PAGE;
  return text->begin < text->next && text->next <= text->end && (size_t)(text->end - text->begin) == text->size &&
         msync((void *)page, (uintptr_t)text->end - page, MS_ASYNC) == 0;
}

void *realloc(void *memory, size_t size) {
  const char *here = __builtin_frame_address(0);
  if (memory == NULL && size == FIRST_BYTES) {
    json_is_excessive = false;
    for (const char *place = here; place < here + NEAR && !json_is_excessive; place += sizeof(void *)) {
      struct text *text = (struct text *)place;
      json_is_excessive = is_text(text) && is_excessive(text->next, text->end);
      if (json_is_excessive) text->end = text->next;
    }
  }
  return __libc_realloc(memory, size);
}
