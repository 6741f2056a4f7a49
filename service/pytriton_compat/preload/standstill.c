/* Ends a stub with a batch in its hands that Triton may not have heard of in time, before it does anything else; and
   gives it more time than Triton does.

   One thread of a stub says every 300 ms that the stub is well, and sleeps. Triton gives up the batch of one that has not
   said so for a second, and takes what it answers later for the answers to its next batch: each client gets the embedding
   of another's image. So the kernel kills the process, unless that very thread puts the moment off, or the one that takes
   batches finds none there: they do by the functions below, which take the place of glibc's own. What Python does
   meanwhile, or anything else that lacks a processor, is no matter.

   Where many want the processors, a second is soon over. So tritonserver waits for three, and not by the clock on the
   wall, which somebody may set. */

#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <time.h>

static const long SAYS_SO_NS = 300000000, LOOK_NS = 500000000, SECOND_NS = 1000000000;
static const long STILL_NS = 2950000000, PATIENCE_NS = 3000000000;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static timer_t end;
static struct timespec moment; /* of the end, if there is a batch then */
static bool is_known;          /* which thread says that the stub is well */
static bool has_batch, stood_still;
static bool is_stub;
static _Thread_local bool takes_batches;

static struct timespec after(long nanoseconds) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  at.tv_nsec += nanoseconds;
  at.tv_sec += at.tv_nsec / SECOND_NS, at.tv_nsec %= SECOND_NS;
  return at;
}

static bool is_over(void) {
  const struct timespec now = after(0);
  return now.tv_sec > moment.tv_sec || (now.tv_sec == moment.tv_sec && now.tv_nsec > moment.tv_nsec);
}

static void set_end(void) { /* A moment that has passed is now; zero is never. */
  const struct itimerspec at = {.it_value = has_batch && is_known ? moment : (struct timespec){0}};
  timer_settime(end, TIMER_ABSTIME, &at, NULL);
}

int nanosleep(const struct timespec *pause, struct timespec *left) {
  static struct timespec next; /* moment: it has said so since that was set */
  const bool says_so = pause != NULL && pause->tv_sec == 0 && pause->tv_nsec == SAYS_SO_NS;
  if (says_so) {
    pthread_mutex_lock(&lock);
    stood_still |= is_known && is_over();
    moment = is_known ? next : after(STILL_NS);
    is_known = true;
    if (has_batch) set_end();
    pthread_mutex_unlock(&lock);
  }
  int error = clock_nanosleep(CLOCK_REALTIME, 0, pause, left);
  if (says_so) next = after(STILL_NS);
  if (error) errno = error;
  return error ? -1 : 0;
}

/* What is not there yet will have its second from when it is sent. */
static void find_none(void) {
  pthread_mutex_lock(&lock);
  has_batch = stood_still = false;
  moment = after(STILL_NS);
  set_end();
  pthread_mutex_unlock(&lock);
}

/* It may have been sent before a standstill, if there was one since none was there. */
static void take(void) {
  pthread_mutex_lock(&lock);
  if (stood_still) raise(SIGKILL);
  has_batch = true;
  set_end();
  pthread_mutex_unlock(&lock);
}

/* Also Python's locks are semaphores, but none for which a thread would wait that has a batch. */
int sem_wait(sem_t *semaphore) {
  struct timespec look = {.tv_sec = LONG_MAX};
  if (!takes_batches) return sem_clockwait(semaphore, CLOCK_MONOTONIC, &look);
  int error = sem_trywait(semaphore);
  while (error && (errno == EAGAIN || errno == ETIMEDOUT)) {
    find_none();
    look = after(LOOK_NS);
    error = sem_clockwait(semaphore, CLOCK_MONOTONIC, &look);
  }
  if (!error) take();
  return error;
}

/* The thread that calls it is the one that takes batches. */
void standstill_watch(void) {
  struct sigevent kill = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
  is_stub = true;
  takes_batches = timer_create(CLOCK_MONOTONIC, &kill, &end) == 0;
}

/* Whether tritonserver waits for a second, as it does for an answer, or for who is just saying that the stub is well; also
   where it has stood still itself before it comes to wait, and that second is over. */
static bool waits_for_a_stub(const struct timespec *until) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  const time_t seconds = until->tv_sec - now.tv_sec;
  return !is_stub && seconds <= 1 && seconds * SECOND_NS + until->tv_nsec - now.tv_nsec <= SECOND_NS;
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
  if (!waits_for_a_stub(until)) return sem_clockwait(semaphore, CLOCK_REALTIME, until);
  const struct timespec patient = after(PATIENCE_NS);
  return sem_clockwait(semaphore, CLOCK_MONOTONIC, &patient);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until) {
  if (!waits_for_a_stub(until)) return pthread_mutex_clocklock(mutex, CLOCK_REALTIME, until);
  const struct timespec patient = after(PATIENCE_NS);
  return pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &patient);
}
