/* Threads in every state that a thread has for itself; see check.h.
 *
 *   threads DIR busy       runs threads in calls and in loops, and counts what they notice in DIR/counters, as blocked.c does
 *   threads DIR headless   the same, and its main thread ends */
#define _GNU_SOURCE
#include "check.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum { READY, ROUNDS, EINTRS, EARLY, WRONG, DETAIL, LATE_NS, SLOTS };
enum { WORKERS = 6 };

static pthread_t start(void *(*run)(void *), void *of)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, run, of))
		die("pthread_create");
	return thread;
}

/* All that a thread has of its own. */
struct own {
	int number;
	sem_t ready;
	pthread_mutex_t robust;
	pthread_cond_t signal;
	pthread_mutex_t mutex;
	int told;
	pid_t tid;
};

static __thread int local;
static __thread char local_bytes[100];

static void *with_own_state(void *argument)
{
	struct own *own = argument;
	char name[16], now[16];
	sigset_t mask, pending;
	struct sched_param param = { 0 };
	struct rlimit limit;
	cpu_set_t cpus, cpus_now;
	stack_t stack = { .ss_sp = malloc(SIGSTKSZ), .ss_size = SIGSTKSZ }, stack_now;
	int death = 0, signal = SIGRTMIN + own->number, nice_before = own->number;
	uid_t uid = 60000 + own->number, ids[3];

	own->tid = gettid();
	local = own->number;
	memset(local_bytes, own->number, sizeof local_bytes);
	snprintf(name, sizeof name, "w (%d) ", own->number);
	pthread_setname_np(pthread_self(), name);
	sigemptyset(&mask);
	sigaddset(&mask, signal);
	sigaddset(&mask, SIGUSR2);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	pthread_sigqueue(pthread_self(), signal, (union sigval){ .sival_int = 100 + own->number });
	pthread_sigqueue(pthread_self(), signal, (union sigval){ .sival_int = 200 + own->number });
	pthread_kill(pthread_self(), SIGUSR2);
	sigaltstack(&stack, NULL);
	setpriority(PRIO_PROCESS, 0, nice_before);
	sched_setscheduler(0, own->number % 2 ? SCHED_BATCH : SCHED_OTHER, &param);
	CPU_ZERO(&cpus);
	CPU_SET(own->number % sysconf(_SC_NPROCESSORS_ONLN), &cpus);
	sched_setaffinity(0, sizeof cpus, &cpus);
	prctl(PR_SET_TIMERSLACK, 70000 + own->number);
	getrlimit(RLIMIT_NPROC, &limit);
	if (own->number == 3) {
		prctl(PR_SET_KEEPCAPS, 1);
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	}
	if (own->number >= 4 && syscall(SYS_setresuid, uid, uid, -1))
		die("setresuid");
	prctl(PR_SET_PDEATHSIG, own->number % 2 ? SIGURG : SIGWINCH);
	pthread_mutex_lock(&own->robust);

	pthread_mutex_lock(&own->mutex);
	sem_post(&own->ready);
	while (!own->told)
		pthread_cond_wait(&own->signal, &own->mutex);
	pthread_mutex_unlock(&own->mutex);

	same(gettid(), own->tid);
	same(local, own->number);
	for (size_t n = 0; n < sizeof local_bytes; n++)
		if (local_bytes[n] != own->number)
			wrong("thread-local byte %zu is %d", n, local_bytes[n]);
	pthread_getname_np(pthread_self(), now, sizeof now);
	expect(!strcmp(now, name));
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	same(sigismember(&mask, signal), 1);
	same(sigismember(&mask, SIGUSR2), 1);
	same(sigismember(&mask, SIGUSR1), 0);
	sigpending(&pending);
	same(sigismember(&pending, SIGUSR2), 1);
	for (int n = 1; n <= 2; n++) {
		siginfo_t info = { 0 };
		struct timespec none = { 0 };
		sigset_t one;
		sigemptyset(&one);
		sigaddset(&one, signal);
		same(sigtimedwait(&one, &info, &none), signal);
		same(info.si_value.sival_int, 100 * n + own->number);
		same(info.si_code, SI_QUEUE);
	}
	sigaltstack(NULL, &stack_now);
	expect(stack_now.ss_sp == stack.ss_sp && stack_now.ss_size == stack.ss_size && stack_now.ss_flags == 0);
	errno = 0;
	same(getpriority(PRIO_PROCESS, 0), nice_before);
	same(sched_getscheduler(0), own->number % 2 ? SCHED_BATCH : SCHED_OTHER);
	sched_getaffinity(0, sizeof cpus_now, &cpus_now);
	expect(CPU_EQUAL(&cpus, &cpus_now));
	same(prctl(PR_GET_TIMERSLACK), 70000 + own->number);
	same(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), own->number == 3);
	same(prctl(PR_GET_KEEPCAPS), own->number == 3);
	syscall(SYS_getresuid, &ids[0], &ids[1], &ids[2]);
	same(ids[0], own->number >= 4 ? uid : 0);
	same(ids[1], own->number >= 4 ? uid : 0);
	same(ids[2], 0);
	prctl(PR_GET_PDEATHSIG, &death);
	same(death, own->number % 2 ? SIGURG : SIGWINCH);
	/* The robust mutex is held when the thread ends: whoever wants it next is told. */
	return (void *)(uintptr_t)(1000 + own->number);
}

static void state(void)
{
	static struct own own[WORKERS];
	pthread_t threads[WORKERS];
	pthread_mutexattr_t robust;
	sigset_t mine;
	signal(SIGUSR1, SIG_IGN);
	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	for (int n = 0; n < WORKERS; n++) {
		own[n].number = n;
		sem_init(&own[n].ready, 0, 0);
		pthread_mutex_init(&own[n].robust, &robust);
		pthread_mutex_init(&own[n].mutex, NULL);
		pthread_cond_init(&own[n].signal, NULL);
		threads[n] = start(with_own_state, &own[n]);
		sem_wait(&own[n].ready);
	}
	/* For the whole process, and blocked by the main thread alone: any of the others may take it, and ignores it. */
	sigemptyset(&mine);
	sigaddset(&mine, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &mine, NULL);
	pthread_setname_np(pthread_self(), "the main one");
	pause_here();
	for (int n = 0; n < WORKERS; n++) {
		void *value;
		pthread_mutex_lock(&own[n].mutex);
		own[n].told = 1;
		pthread_cond_signal(&own[n].signal);
		pthread_mutex_unlock(&own[n].mutex);
		same(pthread_join(threads[n], &value), 0);
		same((uintptr_t)value, 1000 + n);
		same(pthread_mutex_lock(&own[n].robust), EOWNERDEAD);
	}
	/* New threads are made as ever. */
	static struct own later = { .number = 0, .told = 1, .robust = PTHREAD_MUTEX_INITIALIZER, .mutex = PTHREAD_MUTEX_INITIALIZER };
	sem_init(&later.ready, 0, 0);
	same(pthread_join(start(with_own_state, &later), NULL), 0);
}

/* Waits that only one thread's call ends. */
static int pipes[2][2];
static sem_t semaphore;
static pthread_barrier_t barrier;

static void *in_read(void *unused)
{
	char byte = 0;
	(void)unused;
	same(read(pipes[0][0], &byte, 1), 1);
	same(byte, 'r');
	return NULL;
}

static void *in_poll(void *unused)
{
	struct pollfd fd = { .fd = pipes[1][0], .events = POLLIN };
	(void)unused;
	same(poll(&fd, 1, -1), 1);
	same(fd.revents, POLLIN);
	return NULL;
}

static void *in_semaphore(void *unused)
{
	struct timespec limit;
	(void)unused;
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += 1000;
	same(sem_timedwait(&semaphore, &limit), 0);
	return NULL;
}

static void *in_barrier(void *unused)
{
	(void)unused;
	pthread_barrier_wait(&barrier);
	return NULL;
}

static void *in_sigwait(void *unused)
{
	sigset_t set;
	int got = 0;
	(void)unused;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	same(sigwait(&set, &got), 0);
	same(got, SIGUSR2);
	return NULL;
}

static void *in_wait(void *child)
{
	int status = 0;
	same(waitpid(*(pid_t *)child, &status, 0), *(pid_t *)child);
	expect(WIFEXITED(status) && WEXITSTATUS(status) == 3);
	return NULL;
}

static void waits(void)
{
	static pid_t child;
	pthread_t threads[6];
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	if (pipe(pipes[0]) || pipe(pipes[1]))
		die("pipe");
	child = fork();
	if (!child) {
		char byte;
		_exit(read(pipes[1][0], &byte, 1) == 1 ? 3 : 4);
	}
	sem_init(&semaphore, 0, 0);
	pthread_barrier_init(&barrier, NULL, 2);
	void *(*runs[])(void *) = { in_read, in_poll, in_semaphore, in_barrier, in_sigwait, in_wait };
	for (int n = 0; n < 6; n++)
		threads[n] = start(runs[n], &child);
	pause_here();
	same(write(pipes[0][1], "r", 1), 1);
	sem_post(&semaphore);
	pthread_barrier_wait(&barrier);
	kill(getpid(), SIGUSR2);
	/* Two bytes: poll(2) takes none. */
	same(write(pipes[1][1], "pp", 2), 2);
	for (int n = 0; n < 6; n++)
		same(pthread_join(threads[n], NULL), 0);
}

/* A child of many threads that is stopped: none of them runs an instruction until it is continued. */
static volatile uint64_t *common;

static void *counting(void *number)
{
	for (;;)
		common[(uintptr_t)number]++;
	return NULL;
}

static void stopped(void)
{
	uint64_t before[4];
	int status;
	common = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child = fork();
	if (!child) {
		for (uintptr_t n = 1; n < 4; n++)
			start(counting, (void *)n);
		counting((void *)0);
	}
	for (int n = 0; n < 4; n++)
		while (!common[n])
			sched_yield();
	kill(child, SIGSTOP);
	same(waitpid(child, &status, WUNTRACED), child);
	expect(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	memcpy(before, (void *)common, sizeof before);
	pause_here();
	for (int n = 0; n < 4; n++)
		same(common[n], before[n]);
	same(waitpid(child, &status, WUNTRACED | WNOHANG), 0);
	kill(child, SIGCONT);
	for (int n = 0; n < 4; n++)
		while (common[n] == before[n])
			sched_yield();
	kill(child, SIGKILL);
	same(waitpid(child, &status, 0), child);
}

/* A hundred threads, each with a stack of its own that is painted. */
static sem_t together, apart;

static void *one_of_many(void *number)
{
	volatile uint64_t stack[512];
	for (size_t n = 0; n < 512; n++)
		stack[n] = (uintptr_t)number * 1000 + n;
	sem_post(&together);
	while (sem_wait(&apart))
		;
	for (size_t n = 0; n < 512; n++)
		same(stack[n], (uintptr_t)number * 1000 + n);
	return number;
}

static void many(void)
{
	enum { MANY = 100 };
	static pthread_t threads[MANY];
	sem_init(&together, 0, 0);
	sem_init(&apart, 0, 0);
	for (uintptr_t n = 0; n < MANY; n++)
		threads[n] = start(one_of_many, (void *)n);
	for (int n = 0; n < MANY; n++)
		sem_wait(&together);
	pause_here();
	for (uintptr_t n = 0; n < MANY; n++)
		sem_post(&apart);
	for (uintptr_t n = 0; n < MANY; n++) {
		void *value;
		same(pthread_join(threads[n], &value), 0);
		same((uintptr_t)value, n);
	}
}

/* The counters of all threads, each SLOTS wide; those of the file are their sums. */
static volatile uint64_t *slot;
static volatile uint64_t counters[WORKERS][SLOTS];

static void judge(int number, int good)
{
	if (good)
		counters[number][ROUNDS]++;
	else if (errno == EINTR)
		counters[number][EINTRS]++;
	else {
		counters[number][DETAIL] = 1000 * number + errno;
		counters[number][WRONG]++;
	}
}

static void busy_spin(int number)
{
	static uint64_t first;
	static double first_sum;
	uint64_t a = 1, b = 2, c = 3, d = 4;
	double sum = 0;
	for (int n = 0; n < 300000; n++) {
		a = a * 6364136223846793005ull + b, b ^= c >> 7, c += d * 3, d = d << 1 | d >> 63;
		sum += 1.0 / (n + 1);
	}
	if (!first)
		first = a ^ b ^ c ^ d, first_sum = sum;
	errno = 9999;
	judge(number, first == (a ^ b ^ c ^ d) && first_sum == sum);
}

static void busy_sleep(int number)
{
	struct timespec time = { .tv_nsec = 2000000 };
	errno = 0;
	judge(number, nanosleep(&time, NULL) == 0);
}

static void busy_futex(int number)
{
	static uint32_t word;
	struct timespec time = { .tv_nsec = 3000000 };
	errno = 0;
	/* The number of the call stands before its instruction: a dump needs it where the kernel has restarted the call. */
	long answer;
	register struct timespec *limit __asm__("r10") = &time;
	__asm__ volatile("mov $202, %%eax\n syscall" : "=a"(answer) : "D"(&word), "S"(FUTEX_WAIT), "d"(0), "r"(limit)
			: "rcx", "r11", "memory");
	errno = -answer;
	judge(number, answer == -ETIMEDOUT);
}

static int ring[2][2];

static void busy_ping(int number)
{
	char byte;
	errno = 0;
	judge(number, write(ring[0][1], "x", 1) == 1 && read(ring[1][0], &byte, 1) == 1);
	usleep(1000);
}

static void busy_pong(int number)
{
	char byte;
	errno = 0;
	judge(number, read(ring[0][0], &byte, 1) == 1 && write(ring[1][1], "x", 1) == 1);
}

static void *ended(void *number)
{
	return number;
}

/* Threads come and go; they inherit the name, which tells a test not to compare them. */
static void busy_makes(int number)
{
	void *value = NULL;
	pthread_setname_np(pthread_self(), "brief");
	errno = 9998;
	judge(number, pthread_join(start(ended, &value), &value) == 0 && value == &value);
	usleep(2000);
}

static void (*const turns[WORKERS])(int) = { busy_spin, busy_sleep, busy_futex, busy_ping, busy_pong, busy_makes };

static void *forever(void *number)
{
	for (;;)
		turns[(uintptr_t)number]((uintptr_t)number);
	return NULL;
}

/* The rounds of the file are those of the slowest. */
static void *sums(void *unused)
{
	for (;;) {
		struct timespec time = { .tv_nsec = 1000000 };
		uint64_t rounds = UINT64_MAX;
		if (nanosleep(&time, NULL))
			slot[EINTRS]++;
		for (int n = 0; n < WORKERS; n++) {
			if (counters[n][ROUNDS] < rounds)
				rounds = counters[n][ROUNDS];
			for (int at = EINTRS; at <= WRONG; at++)
				slot[at] += counters[n][at], counters[n][at] = 0;
			if (counters[n][DETAIL])
				slot[DETAIL] = counters[n][DETAIL];
		}
		slot[ROUNDS] = rounds;
		slot[READY] = rounds > 0;
	}
	return unused;
}

static void busy(void)
{
	int file = open("counters", O_RDWR | O_CLOEXEC);
	slot = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (slot == MAP_FAILED || pipe(ring[0]) || pipe(ring[1]))
		die("busy");
	close(file);
	for (uintptr_t n = 0; n < WORKERS; n++)
		start(forever, (void *)n);
}

static const struct check checks[] = {
	{ "state", state },
	{ "waits", waits },
	{ "stopped", stopped },
	{ "many", many },
};

int main(int argc, char **argv)
{
	int headless = argc == 3 && !strcmp(argv[2], "headless");
	if (headless || (argc == 3 && !strcmp(argv[2], "busy"))) {
		close_range(3, ~0U, 0);
		if (chdir(argv[1]))
			die(argv[1]);
		busy();
		if (!headless)
			sums(NULL);
		start(sums, NULL);
		syscall(SYS_exit, 0);
	}
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
