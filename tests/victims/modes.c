/* What prctl(2) and its relatives keep for a thread, and for the memory of a process. See check.h. */
#define _GNU_SOURCE
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "check.h"

#define GET_CPUID 0x1011
#define SET_CPUID 0x1012
#define GET_MDWE 66
#define SET_MDWE 65
#define SET_MEMORY_MERGE 67
#define GET_MEMORY_MERGE 68
#define EXCEPT_ADVISED 2
#define SET_DISPATCH 59
#define IOPRIO(class, level) ((class) << 13 | (level))

struct attr {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t least, most;
};

static struct attr scheduling(void)
{
	struct attr attr = { 0 };
	if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0))
		die("sched_getattr");
	return attr;
}

/* One thread's modes; asked in that thread. */
struct modes {
	int tsc, cpuid, machine_check, speculation[3], io_priority;
	struct attr attr;
};

static struct modes modes(void)
{
	struct modes now = { 0 };
	prctl(PR_GET_TSC, &now.tsc);
	now.cpuid = syscall(SYS_arch_prctl, GET_CPUID, 0);
	now.machine_check = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
	for (int which = 0; which < 3; which++)
		now.speculation[which] = prctl(PR_GET_SPECULATION_CTRL, which, 0, 0, 0);
	now.io_priority = syscall(SYS_ioprio_get, 1, 0);
	now.attr = scheduling();
	return now;
}

static void expect_modes(const struct modes *before)
{
	struct modes now = modes();
	same(now.tsc, before->tsc);
	same(now.cpuid, before->cpuid);
	same(now.machine_check, before->machine_check);
	for (int which = 0; which < 3; which++)
		same(now.speculation[which], before->speculation[which]);
	same(now.io_priority, before->io_priority);
	same(now.attr.policy, before->attr.policy);
	same(now.attr.flags, before->attr.flags);
	same(now.attr.nice, before->attr.nice);
	same(now.attr.priority, before->attr.priority);
	same(now.attr.runtime, before->attr.runtime);
	same(now.attr.deadline, before->attr.deadline);
	same(now.attr.period, before->attr.period);
}

/* What a kernel or a processor has not is left as it is: the comparison holds all the same. */
static void take_modes(int number)
{
	struct attr attr = { .size = 48, .nice = number, .runtime = 1000000 * (number + 2) };
	prctl(PR_SET_TSC, number % 2 ? PR_TSC_SIGSEGV : PR_TSC_ENABLE);
	syscall(SYS_arch_prctl, SET_CPUID, number % 3 == 0);
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, number % 3, 0, 0);
	for (int which = 0; which < 2; which++)
		prctl(PR_SET_SPECULATION_CTRL, which, number % 2 ? PR_SPEC_DISABLE : PR_SPEC_ENABLE, 0, 0);
	if (number == 3)
		attr = (struct attr){ .size = 48, .policy = SCHED_FIFO, .flags = 1, .priority = 7 };
	if (number == 4)
		attr.policy = 5;
	syscall(SYS_sched_setattr, 0, &attr, 0);
	syscall(SYS_ioprio_set, 1, 0, number ? IOPRIO(number % 4, number % 4 ? number : 0) : 0);
}

#define THREADS 5
static sem_t ready, told;

static void *other(void *number)
{
	take_modes((uintptr_t)number);
	struct modes before = modes();
	sem_post(&ready);
	sem_wait(&told);
	expect_modes(&before);
	return NULL;
}

/* The main thread is the last to take its own, and has modes that no other has. */
static void threads(void)
{
	pthread_t list[THREADS];
	for (uintptr_t n = 0; n < THREADS; n++) {
		pthread_create(&list[n], NULL, other, (void *)n);
		sem_wait(&ready);
	}
	take_modes(5);
	struct modes before = modes();
	same(before.tsc, PR_TSC_SIGSEGV);
	same(before.machine_check, 2);
	pause_here();
	expect_modes(&before);
	for (int n = 0; n < THREADS; n++)
		sem_post(&told);
	for (int n = 0; n < THREADS; n++)
		pthread_join(list[n], NULL);
}

static int autogroup_nice(void)
{
	char text[64] = "";
	int number, nice = 0, fd = open("/proc/self/autogroup", O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && read(fd, text, sizeof text - 1) > 0)
		sscanf(text, "/autogroup-%d nice %d", &number, &nice);
	close(fd);
	return nice;
}

static void group(void)
{
	int fd = open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, "7", 1) != 1)
		die("autogroup");
	close(fd);
	int before = autogroup_nice();
	pause_here();
	same(autogroup_nice(), before);
}

static long locked_kib(void)
{
	char line[256];
	long kib = -1;
	FILE *status = fopen("/proc/self/status", "re");
	while (status && fgets(line, sizeof line, status))
		sscanf(line, "VmLck: %ld", &kib);
	fclose(status);
	return kib;
}

static int is_resident(void *at)
{
	unsigned char in = 0;
	if (mincore(at, PAGE, &in))
		die("mincore");
	return in & 1;
}

static void locks(int flags)
{
	if (mlockall(flags))
		die("mlockall");
	long before = locked_kib();
	pause_here();
	same(locked_kib(), before);
	char *later = map(16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	same(locked_kib(), before + 64);
	same(is_resident(later + 8 * PAGE), !(flags & MCL_ONFAULT));
	munlockall();
	munmap(later, 16 * PAGE);
}

static void locked_later(void)
{
	locks(MCL_FUTURE);
}

static void locked_now_and_later(void)
{
	locks(MCL_CURRENT | MCL_FUTURE);
}

static void locked_on_fault(void)
{
	locks(MCL_FUTURE | MCL_ONFAULT);
}

static void memory(void)
{
	static const int commands[] = {
		MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 1 << 6, 1 << 8
	};
	for (size_t n = 0; n < sizeof commands / sizeof *commands; n++)
		syscall(SYS_membarrier, commands[n], 0, 0);
	int registered = syscall(SYS_membarrier, 1 << 9, 0, 0);
	if (prctl(PR_SET_THP_DISABLE, 1, EXCEPT_ADVISED, 0, 0))
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	prctl(SET_MEMORY_MERGE, 1, 0, 0, 0);
	int thp = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), merge = prctl(GET_MEMORY_MERGE, 0, 0, 0, 0);
	pause_here();
	same(syscall(SYS_membarrier, 1 << 9, 0, 0), registered);
	same(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0), 0);
	same(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), thp);
	same(prctl(GET_MEMORY_MERGE, 0, 0, 0, 0), merge);
}

/* Nothing writable becomes executable any more, in this process and its children. */
static void no_new_code(void)
{
	char *text = map(PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (prctl(SET_MDWE, 1, 0, 0, 0) && errno != EINVAL)
		die("PR_SET_MDWE");
	int before = prctl(GET_MDWE, 0, 0, 0, 0);
	pause_here();
	same(prctl(GET_MDWE, 0, 0, 0, 0), before);
	same(mprotect(text, PAGE, PROT_READ), 0);
	if (before == 1)
		expect(mprotect(text, PAGE, PROT_READ | PROT_EXEC) == -1 && errno == EACCES);
}

static volatile char selector;

static void dispatched(void)
{
	if (prctl(SET_DISPATCH, 1, 0, 0, &selector))
		die("PR_SET_SYSCALL_USER_DISPATCH");
	pause_here();
}

int main(int argc, char **argv)
{
	static const struct check checks[] = {
		{ "threads", threads }, { "group", group }, { "locked_later", locked_later },
		{ "locked_now_and_later", locked_now_and_later }, { "locked_on_fault", locked_on_fault },
		{ "memory", memory }, { "no_new_code", no_new_code }, { "dispatched", dispatched },
	};
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
