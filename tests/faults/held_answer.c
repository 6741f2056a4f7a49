/* Loaded into tritonserver (LD_PRELOAD): it holds the answer to the gRPC request with the id `held` just before it asks
   whether the call has ended, makes the file that HELD_ANSWER names, and goes on when it hears of the call's end.

   With the answer in its hands it locks the call, then its connection twice, the second time to ask. Another thread, which
   has heard of the end, waits for the first of these locks. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef void Complete(void *response, uint32_t flags, void *userp);
typedef void *SetId(void *request, const char *id);
typedef void *SetCallback(void *request, void *allocator, void *allocator_userp, Complete *complete, void *userp);

static Complete *tritons_complete;
static pthread_mutex_t *volatile call;
static volatile bool is_awaited;
static _Thread_local bool is_to_be_held;
static _Thread_local int locks;

static void hold(pthread_mutex_t *mutex) {
  if (locks == 3) call = mutex;
  if (--locks > 0) return;
  close(open(getenv("HELD_ANSWER"), O_CREAT | O_WRONLY, 0600));
  while (!is_awaited) usleep(1000);
}

int pthread_mutex_lock(pthread_mutex_t *mutex) {
  static int (*glibcs)(pthread_mutex_t *);
  if (glibcs == NULL) glibcs = dlsym(RTLD_NEXT, "pthread_mutex_lock");
  if (locks > 0)
    hold(mutex);
  else if (mutex == call)
    is_awaited = true;
  return glibcs(mutex);
}

static void complete_later(void *response, uint32_t flags, void *userp) {
  locks = 3;
  tritons_complete(response, flags, userp);
}

void *TRITONSERVER_InferenceRequestSetId(void *request, const char *id) {
  is_to_be_held = strcmp(id, "held") == 0;
  return ((SetId *)dlsym(RTLD_NEXT, "TRITONSERVER_InferenceRequestSetId"))(request, id);
}

void *TRITONSERVER_InferenceRequestSetResponseCallback(
    void *request, void *allocator, void *allocator_userp, Complete *complete, void *userp) {
  SetCallback *tritons = (SetCallback *)dlsym(RTLD_NEXT, "TRITONSERVER_InferenceRequestSetResponseCallback");
  if (is_to_be_held) tritons_complete = complete, complete = complete_later;
  return tritons(request, allocator, allocator_userp, complete, userp);
}
