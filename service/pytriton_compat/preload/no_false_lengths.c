/* tritonserver takes a body for as long as it is.

   It believes the first Content-Length, also where its HTTP parser has gone by another one, or by chunks. Of a body that
   is shorter it takes the memory of all that is announced, and of one of 2 GiB and more, cut to 32 bits, it ends. It
   finds that header by this comparison, which finds none when it is loaded before glibc's (LD_PRELOAD); the parser
   looks for the name in small letters, and what makes answers finds its own, which is the very same string. */

#include <string.h>
#include <strings.h>

enum { ANY_SIZE = 1 << 30 };

int strcasecmp(const char *one, const char *other) {
  if (one != other && strcmp(other, "Content-Length") == 0) return 1;
  return strncasecmp(one, other, ANY_SIZE);
}
