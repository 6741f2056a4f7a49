/* tritonserver reads no body as a form.

   Its HTTP parser takes a body of the content type that curl sends by default apart into fields, before it looks at a
   token and although Triton never reads them: that takes 64 times the body's size, and one of 60 MB ends tritonserver.
   It tells such a body by this comparison, which finds none when it is loaded before glibc's (LD_PRELOAD). */

#include <stddef.h>
#include <string.h>

static const char FORM[] = "application/x-www-form-urlencoded";

static int small(unsigned char letter) { return letter >= 'A' && letter <= 'Z' ? letter + ('a' - 'A') : letter; }

int strncasecmp(const char *one, const char *other, size_t size) {
  if (size == sizeof FORM - 1 && strncmp(other, FORM, size) == 0) return 1;
  for (; size > 0; one++, other++, size--) {
    int difference = small(*one) - small(*other);
    if (difference != 0 || *one == '\0') return difference;
  }
  return 0;
}
