/* Processes that share tables: clone(2) with CLONE_FILES and CLONE_FS; and threads that have their own. See check.h. */
#define _GNU_SOURCE
#include <linux/kcmp.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"

static int requests[4][2], answers[4][2];

static int is_one(pid_t a, pid_t b, int kind)
{
	return syscall(SYS_kcmp, a, b, kind, 0, 0) == 0;
}

/* A child that does what it is told: 'o' opens a file and says the number, 'c' closes the number it is told, 'd' changes its directory, 'u' its
 * umask, 'm' makes one of its own kind with the flags of its maker. */
static void serve(int n)
{
	unsigned char what[2], number = 0;
	while (read(requests[n][0], what, 2) == 2) {
		switch (what[0]) {
		case 'o':
			number = open("/dev/null", O_RDONLY | O_CLOEXEC);
			break;
		case 'c':
			number = close(what[1]);
			break;
		case 'd':
			number = chdir(what[1] ? "/" : "/usr");
			break;
		case 'u':
			number = umask(what[1]);
			break;
		}
		if (write(answers[n][1], &number, 1) != 1)
			_exit(1);
	}
	_exit(0);
}

static int ask(int n, char what, unsigned char of)
{
	unsigned char request[2] = { what, of }, number = 255;
	if (write(requests[n][1], request, 2) != 2 || read(answers[n][0], &number, 1) != 1)
		wrong("child %d does not answer", n);
	return number;
}

static pid_t make(int n, int flags)
{
	pid_t child = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
	if (!child)
		serve(n);
	return child;
}

static void open_pipes(int count)
{
	for (int n = 0; n < count; n++)
		if (pipe2(requests[n], O_CLOEXEC) || pipe2(answers[n], O_CLOEXEC))
			die("pipe");
}

static void tables(void)
{
	open_pipes(4);
	int event = eventfd(5, EFD_NONBLOCK), set = epoll_create1(0), high = fcntl(event, F_DUPFD_CLOEXEC, 200);
	struct epoll_event watched = { EPOLLIN, { .u64 = 42 } };
	epoll_ctl(set, EPOLL_CTL_ADD, event, &watched);
	pid_t both = make(0, CLONE_FILES | CLONE_FS), files = make(1, CLONE_FILES), directories = make(2, CLONE_FS);
	pid_t none = make(3, 0), us = getpid();
	int before = open("/dev/zero", O_RDONLY);
	pause_here();
	expect(is_one(us, both, KCMP_FILES) && is_one(us, both, KCMP_FS));
	expect(is_one(us, files, KCMP_FILES) && !is_one(us, files, KCMP_FS));
	expect(!is_one(us, directories, KCMP_FILES) && is_one(us, directories, KCMP_FS));
	expect(!is_one(us, none, KCMP_FILES) && !is_one(us, none, KCMP_FS));
	/* What one opens or closes the others see. */
	int opened = ask(0, 'o', 0);
	expect(fcntl(opened, F_GETFD) == FD_CLOEXEC);
	same(ask(1, 'c', opened), 0);
	expect(fcntl(opened, F_GETFD) == -1);
	same(ask(2, 'c', before), 255);
	same(ask(1, 'c', before), 0);
	expect(fcntl(before, F_GETFD) == -1);
	expect(fcntl(high, F_GETFD) == FD_CLOEXEC);
	struct epoll_event got = { 0 };
	same(epoll_wait(set, &got, 1, 0), 1);
	same(got.data.u64, 42);
	char here[4096];
	same(ask(1, 'd', 1), 0);
	expect(getcwd(here, sizeof here) && strcmp(here, "/"));
	same(ask(0, 'd', 0), 0);
	expect(getcwd(here, sizeof here) && !strcmp(here, "/usr"));
	same(ask(2, 'd', 1), 0);
	expect(getcwd(here, sizeof here) && !strcmp(here, "/"));
	ask(3, 'u', 011);
	ask(2, 'u', 033);
	same(umask(0), 033);
	pid_t children[] = { both, files, directories, none };
	for (int n = 0; n < 4; n++) {
		same(kill(children[n], SIGKILL), 0);
		same(waitpid(children[n], NULL, 0), children[n]);
	}
}

/* A grandchild that shares with its parent, which shares nothing with its own. */
static void grandchild(void)
{
	open_pipes(2);
	int ends[2];
	pid_t pids[2];
	if (pipe2(ends, O_CLOEXEC))
		die("pipe");
	pid_t child = fork();
	if (!child) {
		pids[0] = getpid();
		pids[1] = make(1, CLONE_FILES | CLONE_FS);
		if (write(ends[1], pids, sizeof pids) != sizeof pids)
			_exit(1);
		serve(0);
	}
	if (read(ends[0], pids, sizeof pids) != sizeof pids)
		die("read");
	pause_here();
	expect(is_one(pids[0], pids[1], KCMP_FILES) && is_one(pids[0], pids[1], KCMP_FS));
	expect(!is_one(pids[0], getpid(), KCMP_FILES) && !is_one(pids[0], getpid(), KCMP_FS));
	int opened = ask(0, 'o', 0);
	same(ask(1, 'c', opened), 0);
	same(ask(0, 'c', opened), 255);
	kill(pids[1], SIGKILL);
	kill(child, SIGKILL);
	same(waitpid(child, NULL, 0), child);
}

static sem_t ready, told;

static void *with_own(void *flags)
{
	if (unshare((intptr_t)flags))
		die("unshare");
	sem_post(&ready);
	sem_wait(&told);
	return NULL;
}

static void a_thread(int flags)
{
	pthread_t thread;
	pthread_create(&thread, NULL, with_own, (void *)(intptr_t)flags);
	sem_wait(&ready);
	pause_here();
	sem_post(&told);
	pthread_join(thread, NULL);
}

static void thread_with_table(void)
{
	a_thread(CLONE_FILES);
}

/* Where a thread with directories of its own is. */
static void go_to(const char *name, mode_t mask)
{
	mkdir(name, 0700);
	if (unshare(CLONE_FS) || chdir(name))
		die(name);
	umask(mask);
}

static void expect_in(const char *name, mode_t mask)
{
	char here[4096];
	expect(getcwd(here, sizeof here) && !strcmp(strrchr(here, '/') + 1, name));
	same(umask(mask), mask);
}

static void *with_directories(void *name)
{
	go_to(name, 0077);
	sem_post(&ready);
	sem_wait(&told);
	expect_in(name, 0077);
	/* It is alone with them. */
	if (chdir("/"))
		wrong("chdir");
	umask(0011);
	return NULL;
}

static void thread_with_directories(void)
{
	pthread_t threads[2];
	mkdir("leader", 0700);
	umask(0027);
	for (int n = 0; n < 2; n++) {
		pthread_create(&threads[n], NULL, with_directories, n ? "second" : "first");
		sem_wait(&ready);
	}
	say_ready(getpid());
	if (chdir("leader"))
		die("leader");
	wait_for_go();
	/* Which of them a post lets go is not said. */
	for (int n = 0; n < 2; n++)
		sem_post(&told);
	for (int n = 0; n < 2; n++)
		pthread_join(threads[n], NULL);
	expect_in("leader", 0027);
	if (chdir(".."))
		die("..");
}

static void *with_another(void *unused)
{
	pthread_t other;
	go_to("first", 0077);
	pthread_create(&other, NULL, with_own, NULL);
	pthread_join(other, NULL);
	return unused;
}

static void threads_with_common_directories(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, with_another, NULL);
	sem_wait(&ready);
	pause_here();
	sem_post(&told);
	pthread_join(thread, NULL);
}

static void thread_in_removed_directory(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, with_directories, "first");
	sem_wait(&ready);
	rmdir("first");
	pause_here();
	/* There is no name to ask for any more. */
	_exit(dprintf(result, "done\n") < 0);
}

/* Memory in common, without vfork: the child runs on a stack of its own. */
static int with_memory(void *unused)
{
	(void)unused;
	for (;;)
		syscall(SYS_pause);
	return 0;
}

static void memory(void)
{
	char *stack = map(16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid_t child = clone(with_memory, stack + 16 * PAGE, CLONE_VM | SIGCHLD, NULL);
	pause_here();
	same(kill(child, SIGKILL), 0);
	same(waitpid(child, NULL, 0), child);
}

int main(int argc, char **argv)
{
	static const struct check checks[] = {
		{ "tables", tables }, { "grandchild", grandchild }, { "thread_with_table", thread_with_table },
		{ "thread_with_directories", thread_with_directories },
		{ "threads_with_common_directories", threads_with_common_directories },
		{ "thread_in_removed_directory", thread_in_removed_directory }, { "memory", memory },
	};
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
