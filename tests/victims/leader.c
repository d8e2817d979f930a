/* Processes whose main thread has ended while others run on; see check.h. */
#define _GNU_SOURCE
#include "check.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { CHILDREN = 3, WORKERS = 3, LEFT = 7 };

static pthread_t start(void *(*run)(void *), void *of)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, run, of))
		die("pthread_create");
	return thread;
}

/* What /proc says of a thread, without what changes by itself. */
static char *told(pid_t pid, pid_t tid, const char *file)
{
	char path[64], line[4096], *text = calloc(1, 65536);
	snprintf(path, sizeof path, "/proc/%d/task/%d/%s", pid, tid, file);
	FILE *from = fopen(path, "re");
	while (from && fgets(line, sizeof line, from))
		if (!strstr(line, "ctxt_switches") && !strstr(line, "SigQ") && !strstr(line, "FDSize") && !strstr(line, " kB"))
			strcat(text, line);
	if (from)
		fclose(from);
	return text;
}

/* A field of /proc/PID/stat behind the name, from 3; as text, up to the next blank. */
static const char *field(pid_t pid, int number)
{
	static char text[64];
	char *line = told(pid, pid, "stat"), *at = strrchr(line, ')');
	for (int n = 3; at && n <= number; n++)
		at = strchr(at + 1, ' ');
	text[0] = 0;
	if (at)
		sscanf(at, "%60s", text);
	free(line);
	return text;
}

static void end_main(int status)
{
	for (;;)
		syscall(SYS_exit, status);
}

static void await_end_of_main(pid_t pid)
{
	while (*field(pid, 3) != 'Z')
		usleep(1000);
}

/* How a child ends once it is told, and the pipe that tells it. */
struct child {
	int way, pipe[2];
	pid_t pid;
};

static void *end_of_child(void *argument)
{
	struct child *child = argument;
	char byte, command[64];
	await_end_of_main(getpid());
	if (read(child->pipe[0], &byte, 1) != 1)
		_exit(90);
	switch (child->way) {
	case 0:
		syscall(SYS_exit, 5);
		break;
	case 1:
		syscall(SYS_exit_group, 9);
		break;
	case 2:
		snprintf(command, sizeof command, "[ $$ = %d ] && exit 42", getpid());
		execl("/bin/sh", "sh", "-c", command, NULL);
	}
	_exit(91);
}

static void make(struct child *child, int way)
{
	child->way = way;
	if (pipe2(child->pipe, O_CLOEXEC) || (child->pid = fork()) < 0)
		die("fork");
	if (!child->pid) {
		start(end_of_child, child);
		end_main(3);
	}
	await_end_of_main(child->pid);
}

static int end(struct child *child)
{
	int status = -1;
	if (write(child->pipe[1], "x", 1) != 1 || waitpid(child->pid, &status, 0) != child->pid)
		wrong("child %d: errno %d", child->way, errno);
	return status;
}

/* One that would be told of its parent's death. */
static int orphaned;

static void count(int signal)
{
	orphaned += signal == SIGUSR1;
}

static void make_heir(int pipe[2][2], pid_t *pid)
{
	char byte;
	if (pipe2(pipe[0], O_CLOEXEC) || pipe2(pipe[1], O_CLOEXEC) || (*pid = fork()) < 0)
		die("fork");
	if (*pid) {
		if (read(pipe[1][0], &byte, 1) != 1)
			die("read");
		return;
	}
	signal(SIGUSR1, count);
	prctl(PR_SET_PDEATHSIG, SIGUSR1);
	pid_t parent = getppid();
	if (write(pipe[1][1], "r", 1) != 1 || read(pipe[0][0], &byte, 1) != 1)
		_exit(92);
	_exit(orphaned || getppid() != parent);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int finished, waiting;
static __thread uintptr_t local;

static void *worker(void *number)
{
	sigset_t mask;
	local = (uintptr_t)number;
	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + local);
	pthread_sigmask(SIG_BLOCK, &mask, NULL);
	pthread_mutex_lock(&mutex);
	waiting++;
	while (!finished)
		pthread_cond_wait(&condition, &mutex);
	pthread_mutex_unlock(&mutex);
	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	same(sigismember(&mask, SIGRTMIN + local), 1);
	return (void *)(local + 100);
}

static void *in_its_place(void *unused)
{
	struct child children[CHILDREN], fresh[CHILDREN];
	pthread_t workers[WORKERS];
	pid_t pid = getpid(), tid = gettid(), heir;
	int pipe[2][2], status;
	void *value;
	char *memory = map(64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	paint(memory, 64 * PAGE, 11);
	pthread_setname_np(pthread_self(), "in its place");
	await_end_of_main(pid);
	/* Signals that nobody takes any more. */
	syscall(SYS_tgkill, pid, pid, SIGUSR2);
	for (int n = 0; n < CHILDREN; n++)
		make(&children[n], n);
	make_heir(pipe, &heir);
	for (uintptr_t n = 0; n < WORKERS; n++)
		workers[n] = start(worker, (void *)n);
	for (int all = 0; !all; usleep(1000)) {
		pthread_mutex_lock(&mutex);
		all = waiting == WORKERS;
		pthread_mutex_unlock(&mutex);
	}
	char *before = told(pid, pid, "status"), *own = told(pid, tid, "status");

	say_ready(pid);
	wait_for_go();

	same(getpid(), pid);
	same(gettid(), tid);
	expect(*field(pid, 3) == 'Z');
	same(atoi(field(pid, 52)), LEFT << 8);
	same(atoi(field(pid, 19)), 3);
	char *after = told(pid, pid, "status"), *own_after = told(pid, tid, "status");
	if (strcmp(before, after))
		wrong("the main thread was\n%sand is\n%s", before, after);
	if (strcmp(own, own_after))
		wrong("the other thread was\n%sand is\n%s", own, own_after);
	expect_painted("memory", memory, 64 * PAGE, 11);
	same(kill(pid, 0), 0);
	pthread_mutex_lock(&mutex);
	finished = 1;
	pthread_cond_broadcast(&condition);
	pthread_mutex_unlock(&mutex);
	for (uintptr_t n = 0; n < WORKERS; n++) {
		pthread_join(workers[n], &value);
		same((uintptr_t)value, n + 100);
	}
	if (write(pipe[0][1], "x", 1) != 1)
		wrong("write: errno %d", errno);
	same(waitpid(heir, &status, 0), heir);
	same(status, 0);
	for (int n = 0; n < CHILDREN; n++) {
		make(&fresh[n], n);
		same(end(&children[n]), end(&fresh[n]));
	}
	dprintf(result, "done\n");
	_exit(0);
	return unused;
}

static void ended(void)
{
	cpu_set_t cpus;
	sigset_t mask;
	start(in_its_place, NULL);
	setpriority(PRIO_PROCESS, 0, 3);
	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	sched_setaffinity(0, sizeof cpus, &cpus);
	sigfillset(&mask);
	sigdelset(&mask, SIGURG);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	prctl(PR_SET_NAME, "gone (7)");
	if (geteuid() == 0 && syscall(SYS_setresuid, 60007, 60007, -1))
		die("setresuid");
	end_main(LEFT);
}

/* Its filters go with it. */
static void *without_filter(void *unused)
{
	await_end_of_main(getpid());
	say_ready(getpid());
	wait_for_go();
	dprintf(result, "done\n");
	_exit(0);
	return unused;
}

static void filtered(void)
{
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { 1, &allow };
	start(without_filter, NULL);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		die("prctl");
	end_main(0);
}

static const struct check checks[] = {
	{ "ended", ended },
	{ "filtered", filtered },
};

int main(int argc, char **argv)
{
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
