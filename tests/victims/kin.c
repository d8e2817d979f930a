/* What parents and children tell each other, and signals that wait with all that belongs to them. See check.h. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"

static const struct timespec patience = { 20, 0 };

static int take(int number, siginfo_t *info, const struct timespec *limit)
{
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, number);
	/* The C library's wait says SI_USER for SI_TKILL. */
	return syscall(SYS_rt_sigtimedwait, &one, info, limit, 8);
}

static pid_t child_with(int exit_signal)
{
	return syscall(SYS_clone, exit_signal, 0, 0, 0, 0);
}

/* Children that end with another signal than SIGCHLD, or with none; and some that have ended already. */
static void exit_signals(void)
{
	const int signals[] = { SIGUSR1, 0, SIGRTMIN + 5, SIGCHLD };
	enum { COUNT = sizeof signals / sizeof *signals };
	int hold[2], status;
	char byte;
	siginfo_t info;
	sigset_t blocked;
	pid_t living[COUNT], dead[COUNT];
	if (pipe(hold))
		die("pipe");
	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	for (int n = 0; n < COUNT; n++) {
		living[n] = child_with(signals[n]);
		if (!living[n])
			_exit(read(hold[0], &byte, 1) == 1 ? 40 + n : 1);
		dead[n] = child_with(signals[n]);
		if (!dead[n]) {
			if (n == 2 && !geteuid() && (setgid(54321) || setuid(54320)))
				_exit(1);
			_exit(50 + n);
		}
		waitid(P_PID, dead[n], &info, WEXITED | WNOWAIT | __WALL);
		if (n == 0)
			take(SIGUSR1, &info, &patience);
	}
	pause_here();
	/* The signal of the first dead child was taken before, those of the others still wait. */
	same(take(SIGUSR1, &info, &(struct timespec){ 0, 0 }), -1);
	same(take(SIGRTMIN + 5, &info, &(struct timespec){ 0, 0 }), SIGRTMIN + 5);
	same(info.si_pid, dead[2]);
	same(info.si_uid, geteuid() ? getuid() : 54320);
	same(take(SIGCHLD, &info, &(struct timespec){ 0, 0 }), SIGCHLD);
	same(info.si_pid, dead[3]);
	same(info.si_status, 53);
	waitid(P_PID, dead[2], &info, WEXITED | WNOWAIT | __WALL);
	same(info.si_uid, geteuid() ? getuid() : 54320);
	for (int n = 0; n < COUNT; n++) {
		same(waitpid(dead[n], &status, n == 3 ? 0 : __WCLONE), dead[n]);
		same(WEXITSTATUS(status), 50 + n);
	}
	same(write(hold[1], "xxxx", 4), 4);
	for (int n = 0; n < COUNT; n++) {
		if (signals[n]) {
			same(take(signals[n], &info, &patience), signals[n]);
			same(info.si_pid, living[n]);
			same(info.si_code, CLD_EXITED);
		}
		same(waitpid(living[n], &status, n == 3 ? 0 : __WCLONE), living[n]);
		same(WEXITSTATUS(status), 40 + n);
	}
	sigpending(&blocked);
	for (int n = 1; n < 65; n++)
		if (n != 32 && n != 33)
			expect(!sigismember(&blocked, n));
}

/* A child that asks for a signal at its parent's death, one whose parent is dead, and a subreaper that gets them. */
static void orphans(void)
{
	int ready[2], hold[2], status;
	char byte;
	pid_t numbers[2];
	if (pipe(ready) || pipe(hold))
		die("pipe");
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR2);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	pid_t between = fork();
	if (!between) {
		pid_t below = fork();
		if (!below) {
			siginfo_t info;
			pid_t parent = getppid();
			prctl(PR_SET_PDEATHSIG, SIGUSR2, 0, 0, 0);
			if (write(ready[1], &(pid_t){ getpid() }, sizeof below) != sizeof below)
				_exit(1);
			same(take(SIGUSR2, &info, NULL), SIGUSR2);
			same(info.si_pid, parent);
			int signal = 0;
			prctl(PR_GET_PDEATHSIG, &signal, 0, 0, 0);
			same(signal, SIGUSR2);
			_exit(getppid() == parent ? 2 : 61);
		}
		same(read(hold[0], &byte, 1), 1);
		sigset_t pending;
		sigpending(&pending);
		expect(!sigismember(&pending, SIGUSR2));
		_exit(62);
	}
	pid_t maker = fork();
	if (!maker) {
		pid_t orphan = fork();
		if (!orphan) {
			while (getppid() == maker)
				sched_yield();
			if (write(ready[1], &(pid_t){ getpid() }, sizeof orphan) != sizeof orphan)
				_exit(1);
			same(read(hold[0], &byte, 1), 1);
			_exit(63);
		}
		_exit(0);
	}
	waitpid(maker, &status, 0);
	for (int n = 0; n < 2; n++)
		if (read(ready[0], &numbers[n], sizeof *numbers) != sizeof *numbers)
			die("ready");
	pause_here();
	int reaper = 0;
	prctl(PR_GET_CHILD_SUBREAPER, &reaper, 0, 0, 0);
	same(reaper, 1);
	same(write(hold[1], "xx", 2), 2);
	int sum = 0;
	for (int n = 0; n < 3; n++) {
		expect(waitpid(-1, &status, 0) > 0 && WIFEXITED(status));
		sum += WEXITSTATUS(status);
	}
	same(sum, 61 + 62 + 63);
}

#define MANY 150

static void fill(siginfo_t *info, int number, int code, int n)
{
	memset(info, 0, sizeof *info);
	unsigned char *bytes = (unsigned char *)info;
	/* All that any layout uses. */
	for (size_t at = 12; at < 48; at++)
		bytes[at] = at * 7 + n;
	info->si_signo = number;
	info->si_errno = n;
	info->si_code = code;
}

static void expect_info(int number, int code, int n)
{
	siginfo_t info, sent;
	fill(&sent, number, code, n);
	memset(&info, 0, sizeof info);
	same(take(number, &info, &(struct timespec){ 0, 0 }), number);
	if (memcmp(&info, &sent, 48))
		wrong("signal %d, code %d, number %d: another siginfo", number, code, n);
}

static sem_t done, turn;

static void expect_own(void)
{
	for (int n = 0; n < MANY; n++)
		expect_info(SIGRTMIN + 3, SI_QUEUE, n);
	expect_info(SIGINT, SI_TKILL, 5);
	expect_info(SIGSEGV, SEGV_MAPERR, 6);
}

static void to_itself(void)
{
	siginfo_t info;
	for (int n = 0; n < MANY; n++) {
		fill(&info, SIGRTMIN + 3, SI_QUEUE, n);
		same(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGRTMIN + 3, &info), 0);
	}
	fill(&info, SIGINT, SI_TKILL, 5);
	same(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGINT, &info), 0);
	fill(&info, SIGSEGV, SEGV_MAPERR, 6);
	same(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGSEGV, &info), 0);
}

static void *with_pending(void *unused)
{
	to_itself();
	sem_post(&done);
	sem_wait(&turn);
	expect_own();
	return unused;
}

static const struct { int number, code; } kinds[] = {
	{ 0, SI_QUEUE }, { 1, SI_TIMER }, { 2, SI_MESGQ }, { 1, SI_ASYNCIO }, { 0, SI_SIGIO }, { 3, SI_USER }, { 0, SI_KERNEL },
	{ 4, SI_TKILL }, { 0, SI_ASYNCNL }, { 4, -77 }, { 3, 4711 },
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static void queue_kinds(void)
{
	siginfo_t info;
	for (int n = 0; n < KINDS; n++) {
		fill(&info, SIGRTMIN + 10 + kinds[n].number, kinds[n].code, n);
		same(syscall(SYS_rt_sigqueueinfo, getpid(), SIGRTMIN + 10 + kinds[n].number, &info), 0);
	}
}

static void expect_kinds(void)
{
	for (int number = 0; number < 5; number++)
		for (int n = 0; n < KINDS; n++)
			if (kinds[n].number == number)
				expect_info(SIGRTMIN + 10 + number, kinds[n].code, n);
}

/* Signals of the process, of its leader and of another thread, with every kind of siginfo, in their order; also in a stopped process. */
static void siginfos(void)
{
	pthread_t thread;
	sigset_t blocked;
	int status;
	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	pid_t stopped = fork();
	if (!stopped) {
		queue_kinds();
		raise(SIGSTOP);
		expect_kinds();
		_exit(7);
	}
	sem_init(&done, 0, 0);
	sem_init(&turn, 0, 0);
	pthread_create(&thread, NULL, with_pending, NULL);
	sem_wait(&done);
	waitpid(stopped, &status, WUNTRACED);
	siginfo_t info;
	take(SIGCHLD, &info, &patience);
	to_itself();
	queue_kinds();
	/* Fewer than there are. */
	struct rlimit limit, now;
	getrlimit(RLIMIT_SIGPENDING, &limit);
	limit.rlim_cur = 20;
	setrlimit(RLIMIT_SIGPENDING, &limit);
	pause_here();
	getrlimit(RLIMIT_SIGPENDING, &now);
	expect(now.rlim_cur == limit.rlim_cur && now.rlim_max == limit.rlim_max);
	sem_post(&turn);
	pthread_join(thread, NULL);
	expect_own();
	expect_kinds();
	kill(stopped, SIGCONT);
	same(waitpid(stopped, &status, 0), stopped);
	same(WEXITSTATUS(status), 7);
	sigpending(&blocked);
	for (int n = SIGRTMIN; n < 65; n++)
		expect(!sigismember(&blocked, n));
}

int main(int argc, char **argv)
{
	static const struct check checks[] = {
		{ "exit_signals", exit_signals },
		{ "orphans", orphans },
		{ "siginfos", siginfos },
	};
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
