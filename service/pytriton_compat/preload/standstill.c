/* Ends a stub with a batch in its hands that Triton cannot have heard of in time, before it does anything else.

   One thread of a stub says every 300 ms that the stub is well, and sleeps. Triton gives up the batch of one that has not
   said so for a second, and takes what it answers later for the answers to its next batch: each client gets the
   embedding of another's image. Python sees a standstill only when it has its lock, which Triton's code holds while it
   hands answers over, and not that of another thread. So the kernel kills the process, unless that very thread puts the
   moment off: it does by the function below, which takes the place of glibc's own. */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <time.h>

/* The second begins when Triton sends the batch, a moment before it comes. */
enum { SAYS_SO_NS = 300 * 1000000, FIRST_NS = 900 * 1000000, STILL_NS = 950 * 1000000, SECOND_NS = 1000 * 1000000 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static timer_t end;
static struct timespec moment; /* of the end, if there is a batch then; zero, which is none, until it is put off once */
static long batches;
static bool has_batch;

static void set_end(void) { /* A moment that has passed is now. */
  const struct itimerspec at = {.it_value = has_batch ? moment : (struct timespec){0}};
  timer_settime(end, TIMER_ABSTIME, &at, NULL);
}

static void put_off(long nanoseconds) { /* By a clock that goes on where the machine sleeps. */
  struct timespec at;
  clock_gettime(CLOCK_BOOTTIME, &at);
  at.tv_nsec += nanoseconds;
  at.tv_sec += at.tv_nsec / SECOND_NS, at.tv_nsec %= SECOND_NS;
  if (at.tv_sec > moment.tv_sec || (at.tv_sec == moment.tv_sec && at.tv_nsec > moment.tv_nsec)) moment = at;
}

int nanosleep(const struct timespec *pause, struct timespec *left) {
  if (pause != NULL && pause->tv_sec == 0 && pause->tv_nsec == SAYS_SO_NS) {
    pthread_mutex_lock(&lock);
    put_off(STILL_NS);
    if (has_batch) set_end();
    pthread_mutex_unlock(&lock);
  }
  int error = clock_nanosleep(CLOCK_REALTIME, 0, pause, left);
  if (error) errno = error;
  return error ? -1 : 0;
}

/* Once, before all others; returns whether there is such a timer. */
bool standstill_watch(void) {
  struct sigevent kill = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
  return timer_create(CLOCK_BOOTTIME, &kill, &end) == 0;
}

/* A batch has come; returns its number. */
long standstill_begin(void) {
  pthread_mutex_lock(&lock);
  long number = ++batches;
  has_batch = true;
  if (moment.tv_sec > 0) put_off(FIRST_NS);
  set_end();
  pthread_mutex_unlock(&lock);
  return number;
}

/* Triton has the answers to batch `number`; of no account where there is another one by now. */
void standstill_end(long number) {
  pthread_mutex_lock(&lock);
  if (number == batches) {
    has_batch = false;
    set_end();
  }
  pthread_mutex_unlock(&lock);
}
