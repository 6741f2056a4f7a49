/* Ends a stub that has stood still while its answers were on their way to Triton, before it does anything else.

   Triton gives up the batch of a stub that it has not heard of for 0.7 to 1 s, and takes what the stub answers later for
   the answers to its next batch: each client gets the embedding of another's image. Python sees a standstill only when
   it has its lock, and Triton's code holds that while it hands answers over. So the kernel kills the process, unless a
   thread that needs no lock puts the moment off again and again. */

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <time.h>

enum { STILL_MS = 650, LOOK_MS = 50 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static timer_t end;
static long handovers;
static bool is_handing_over;

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
    if (is_handing_over) end_in(STILL_MS);
    pthread_mutex_unlock(&lock);
  }
}

/* Answers are on their way to Triton; returns the number of this handover. */
long standstill_hand_over(void) {
  pthread_mutex_lock(&lock);
  long number = ++handovers;
  is_handing_over = true;
  end_in(STILL_MS);
  pthread_mutex_unlock(&lock);
  return number;
}

/* Handover `number` is over; of no account where there is another one by now. */
void standstill_handed_over(long number) {
  pthread_mutex_lock(&lock);
  if (number == handovers) {
    is_handing_over = false;
    end_in(0);
  }
  pthread_mutex_unlock(&lock);
}
