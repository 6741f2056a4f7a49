/* A weight in Accept-Encoding that no number holds (`gzip;q=1e999`) does not end tritonserver.

   It has std::stod read the weight, which throws one exception for what is no number, and is caught, and another one for
   a number out of range, which nobody catches. std::stod knows of that by ERANGE alone, which this does not leave, loaded
   before glibc's own (LD_PRELOAD). */

#include <errno.h>

double __strtod_internal(const char *text, char **end, int grouping);

double strtod(const char *text, char **end) {
  int before = errno;
  double number = __strtod_internal(text, end, 0);
  if (errno == ERANGE) errno = before;
  return number;
}
