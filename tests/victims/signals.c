/* Counts what reaches it, and never loses any of it by itself.
 *
 *   signals DIR MODE
 *
 * DIR/counters is a file of at least one page; its slots are named below. Modes:
 *   itimer    SIGALRM every millisecond; ROUNDS is their number
 *   queued    a child sends SIGRTMIN with the values 1, 2, 3, ...; WRONG counts one that is not the next
 *   children  forks a child that ends at once, and waits for SIGCHLD and for it
 *   vfork     waits in vfork for a child that waits for a byte of DIR/in
 *   thread_in_vfork   a thread of it does so
 *   beside    as children, beside a child that waits in epoll_wait for nothing; EINTRS counts what ends that
 *   zombie    leaves its dead child alone until a byte comes through DIR/in, then waits for it */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { READY, ROUNDS, EINTRS, EARLY, WRONG };

static volatile uint64_t *slot;

static void die(const char *what)
{
	perror(what);
	_exit(1);
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART };
	if (sigaction(signal, &action, NULL))
		die("sigaction");
}

static void on_alarm(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	slot[ROUNDS]++;
}

static void itimer(void)
{
	struct itimerval timer = { { 0, 1000 }, { 0, 1000 } };
	handle(SIGALRM, on_alarm);
	if (setitimer(ITIMER_REAL, &timer, NULL))
		die("setitimer");
	for (;;)
		pause();
}

static void on_queued(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	if (info->si_value.sival_int != (int)slot[ROUNDS] + 1)
		slot[WRONG]++;
	slot[ROUNDS] = info->si_value.sival_int;
}

/* Ordinary calls go on meanwhile, so that signals come at all places; EAGAIN means that the queue is full. */
static void queued(void)
{
	handle(SIGRTMIN, on_queued);
	pid_t parent = getpid();
	if (!fork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (int n = 1;; n++) {
			struct timespec pause = { .tv_nsec = 50000 };
			while (sigqueue(parent, SIGRTMIN, (union sigval){ .sival_int = n }))
				nanosleep(&pause, NULL);
			nanosleep(&pause, NULL);
		}
	}
	for (;;) {
		struct timespec pause = { .tv_nsec = 1000000 };
		getppid();
		nanosleep(&pause, NULL);
	}
}

static volatile sig_atomic_t told;

static void on_child(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	told++;
}

static void children(int beside)
{
	sigset_t blocked, open;
	handle(SIGCHLD, on_child);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	sigprocmask(SIG_BLOCK, &blocked, &open);
	for (;;) {
		int status = 0, before = told;
		pid_t child = fork();
		if (!child)
			_exit(slot[ROUNDS] & 0x3f);
		while (told == before)
			sigsuspend(&open);
		if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != (int)(slot[ROUNDS] & 0x3f))
			slot[WRONG]++;
		if (waitpid(-1, &status, WNOHANG) != (beside ? 0 : -1) || (!beside && errno != ECHILD))
			slot[WRONG]++;
		slot[ROUNDS]++;
	}
}

static void fork_waiter(void)
{
	struct epoll_event event;
	int set = epoll_create1(EPOLL_CLOEXEC);
	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		epoll_wait(set, &event, 1, -1);
		slot[EINTRS]++;
	}
}

static void *in_vfork(void *unused)
{
	int in = open("in", O_RDWR | O_CLOEXEC);
	int status = 0;
	pid_t child = vfork();
	if (!child) {
		char byte;
		slot[READY] = 1;
		_exit(read(in, &byte, 1) == 1 ? 7 : 8);
	}
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7)
		slot[WRONG]++;
	slot[ROUNDS]++;
	for (;;)
		pause();
	return unused;
}

static void thread_in_vfork(void)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, in_vfork, NULL))
		die("pthread_create");
	pthread_join(thread, NULL);
}

static void zombie(void)
{
	int in = open("in", O_RDWR | O_CLOEXEC);
	int status = 0;
	char byte;
	pid_t child = fork();
	if (!child)
		_exit(9);
	slot[READY] = 1;
	if (read(in, &byte, 1) != 1)
		slot[EINTRS]++;
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 9)
		slot[WRONG]++;
	slot[ROUNDS]++;
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	if (argc != 3 || chdir(argv[1]))
		die("usage: signals DIR MODE");
	/* What the test runner left open is not the victim's: a dump would refuse a pipe of the runner's. */
	close_range(3, ~0U, 0);
	int counters = open("counters", O_RDWR | O_CLOEXEC);
	slot = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, counters, 0);
	if (slot == MAP_FAILED)
		die(argv[1]);
	close(counters);
	if (!strcmp(argv[2], "vfork"))
		in_vfork(NULL);
	if (!strcmp(argv[2], "thread_in_vfork"))
		thread_in_vfork();
	if (!strcmp(argv[2], "zombie"))
		zombie();
	slot[READY] = 1;
	if (!strcmp(argv[2], "itimer"))
		itimer();
	if (!strcmp(argv[2], "queued"))
		queued();
	if (!strcmp(argv[2], "children"))
		children(0);
	if (!strcmp(argv[2], "beside")) {
		fork_waiter();
		children(1);
	}
	die(argv[2]);
}
