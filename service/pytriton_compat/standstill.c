/* Ends a stub that has stood still with a batch in its hands, before it does anything else.

   Triton gives up the batch of a stub that it has not heard of for 0.7 to 1 s, and takes what the stub answers later for
   the answers to its next batch: each client gets the embedding of another's image. Python sees a standstill only when
   it has its lock, and Triton's code holds that while it hands answers over. So the kernel kills the process, unless a
   thread that needs no lock puts the moment off again and again. */

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <time.h>

enum { STILL_MS = 600, LOOK_MS = 100 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static timer_t end;
static long batches;
static bool has_batch;

static void end_in(long milliseconds) { /* 0: not at all */
  struct itimerspec moment = {.it_value = {.tv_nsec = milliseconds * 1000000}};
  timer_settime(end, 0, &moment, NULL);
}

/* Once, before all others; returns whether there is such a timer. By a clock that goes on where the machine sleeps. */
bool standstill_watch(void) {
  struct sigevent kill = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
  return timer_create(CLOCK_BOOTTIME, &kill, &end) == 0;
}

/* Does not return. */
void standstill_put_off(void) {
  for (;;) {
    struct timespec pause = {.tv_nsec = LOOK_MS * 1000000};
    nanosleep(&pause, NULL);
    pthread_mutex_lock(&lock);
    if (has_batch) end_in(STILL_MS);
    pthread_mutex_unlock(&lock);
  }
}

/* A batch has come; returns its number. */
long standstill_begin(void) {
  pthread_mutex_lock(&lock);
  long number = ++batches;
  has_batch = true;
  end_in(STILL_MS);
  pthread_mutex_unlock(&lock);
  return number;
}

/* Triton has the answers to batch `number`; of no account where there is another one by now. */
void standstill_end(long number) {
  pthread_mutex_lock(&lock);
  if (number == batches) {
    has_batch = false;
    end_in(0);
  }
  pthread_mutex_unlock(&lock);
}
