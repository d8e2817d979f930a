/* Kinds of memory, and what a program may ask the kernel to do with it. See check.h. */
#define _GNU_SOURCE
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define DROPPABLE 0x08
#define SYS_MSEAL 462

/* The VmFlags of the mapping at an address, without the soft-dirty bit. MLOCK_ONFAULT has a name from Linux 6.2 on. */
static void flags_of(const void *at, char *flags, size_t size)
{
	char line[512];
	unsigned long from, to, wanted = (unsigned long)at;
	int inside = 0;
	FILE *smaps = fopen("/proc/self/smaps", "re");
	*flags = 0;
	while (smaps && fgets(line, sizeof line, smaps)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2 && strchr(line, '-') < strchr(line, ' '))
			inside = from <= wanted && wanted < to;
		if (inside && !strncmp(line, "VmFlags:", 8)) {
			char *soft = strstr(line, " sd");
			if (soft)
				memmove(soft, soft + 3, strlen(soft + 3) + 1);
			char *unnamed = strstr(line, " ??");
			if (unnamed)
				memcpy(unnamed, " lf", 3);
			snprintf(flags, size, "%s", line + 8);
		}
	}
	if (smaps)
		fclose(smaps);
}

#define MOST 24
static struct {
	const char *name;
	char *at, flags[256];
	uint64_t seed;
	size_t size;
} parts[MOST];
static int part_count;

static char *part(const char *name, size_t size, int prot, int flags)
{
	char *at = map(size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) + PAGE;
	at = mmap(at, size, prot, flags | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (at == MAP_FAILED)
		return NULL;
	parts[part_count].name = name;
	parts[part_count].at = at;
	parts[part_count].size = size;
	part_count++;
	return at;
}

static char *painted(const char *name, size_t size)
{
	char *at = part(name, size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	if (!at)
		die(name);
	parts[part_count - 1].seed = part_count;
	paint(at, size, part_count);
	return at;
}

static void faults(const char *what, char *at)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC))
		die("pipe");
	if (write(ends[1], at, 1) != -1 || errno != EFAULT)
		wrong("%s can be read", what);
	close(ends[0]);
	close(ends[1]);
}

/* Advice, names, locks, guards, seals: everything that smaps shows of a mapping. */
static void advice(void)
{
	size_t size = 8 * PAGE;
	static const struct { const char *name; int advice; } advices[] = {
		{ "dontfork", MADV_DONTFORK }, { "wipeonfork", MADV_WIPEONFORK }, { "dontdump", MADV_DONTDUMP },
		{ "mergeable", MADV_MERGEABLE }, { "random", MADV_RANDOM }, { "sequential", MADV_SEQUENTIAL },
		{ "hugepage", MADV_HUGEPAGE }, { "nohugepage", MADV_NOHUGEPAGE },
	};
	for (size_t n = 0; n < sizeof advices / sizeof *advices; n++) {
		char *at = painted(advices[n].name, size);
		/* A kernel may be built without some of them. */
		if (madvise(at, size, advices[n].advice) && errno != EINVAL)
			die(advices[n].name);
	}
	struct rlimit most = { 64 << 20, 64 << 20 };
	setrlimit(RLIMIT_MEMLOCK, &most);
	char *locked = painted("locked", size), *later = painted("locked on fault", size);
	char *unreadable = painted("locked without access", size);
	if (mlock(locked, size) || mlock2(later, size, MLOCK_ONFAULT) || mlock(unreadable, size) || mprotect(unreadable, size, PROT_NONE))
		die("mlock");
	char *named = painted("named", size), *shared = part("named, shared", size, PROT_READ | PROT_WRITE, MAP_SHARED);
	paint(shared, size, 77);
	prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named, size, "a name (of it)");
	prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, shared, size, "a shared name");
	char *grows = part("growing down", size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_GROWSDOWN);
	char *free_of_charge = part("not reserved", size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE);
	char *droppable = part("droppable", size, PROT_READ | PROT_WRITE, DROPPABLE);
	char *guarded = painted("guarded", size);
	int guards = !madvise(guarded + 2 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL);
	char *sealed = painted("sealed", size);
	mprotect(sealed, size, PROT_READ);
	int seals = !syscall(SYS_MSEAL, sealed, size, 0);
	paint(grows, size, 78);
	paint(free_of_charge, size, 79);
	for (int n = 0; n < part_count; n++)
		flags_of(parts[n].at, parts[n].flags, sizeof parts[n].flags);
	pause_here();
	for (int n = 0; n < part_count; n++) {
		char now[256];
		flags_of(parts[n].at, now, sizeof now);
		if (strcmp(now, parts[n].flags))
			wrong("%s: the flags are %s were %s", parts[n].name, now, parts[n].flags);
		if (parts[n].seed && parts[n].at != unreadable && parts[n].at != guarded)
			expect_painted(parts[n].name, parts[n].at, size, parts[n].seed);
	}
	expect_painted("named, shared", shared, size, 77);
	expect_painted("growing down", grows, size, 78);
	expect_painted("not reserved", free_of_charge, size, 79);
	mprotect(unreadable, size, PROT_READ);
	expect_painted("locked without access", unreadable, size, 11);
	expect(!droppable || *droppable == 0);
	if (guards) {
		for (int n = 2; n < 5; n++)
			faults("a guard page", guarded + n * PAGE);
		for (int n = 0; n < 2; n++)
			expect(guarded[n * PAGE] != 0 || guarded[n * PAGE + 1] != 0);
	}
	if (seals)
		expect(munmap(sealed, size) == -1 && errno == EPERM);
}

#define HEIRS 4
/* Words of 0 and of a paint, by turns, at the start of each page. */
static void expect_pages(const char *what, const char *at, size_t pages, const uint64_t *seeds)
{
	for (size_t n = 0; n < pages; n++) {
		uint64_t expected = seeds[n] ? seeds[n] * 0x9e3779b97f4a7c15ull : 0;
		if (*(const uint64_t *)(at + n * PAGE) != expected) {
			wrong("%s: page %zu of %zu changed", what, n, pages);
			return;
		}
	}
}

/* Children of a process with much memory, each of which has most of it in common with the parent: written, dropped and protected pages,
 * a part that the parent has unmapped since, and a grandchild. */
static void heirs(void)
{
	size_t pages = 16384, size = pages * PAGE;
	char *common = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t *seeds = calloc(pages, sizeof *seeds);
	for (size_t n = 0; n < pages; n++)
		if (n % 7) {
			seeds[n] = n + 1;
			paint(common + n * PAGE, PAGE, seeds[n]);
		}
	mprotect(common + 64 * PAGE, 64 * PAGE, PROT_READ);
	int ready[2], hold[2], status;
	char byte = 0;
	if (pipe(ready) || pipe(hold))
		die("pipe");
	pid_t children[HEIRS];
	for (int child = 0; child < HEIRS; child++) {
		children[child] = fork();
		if (children[child])
			continue;
		for (size_t n = 200 + child; n < 300; n += 3)
			paint(common + n * PAGE, PAGE, seeds[n] = 1000000 * (child + 1) + n);
		madvise(common + 1000 * PAGE, 50 * PAGE, MADV_DONTNEED);
		memset(seeds + 1000, 0, 50 * sizeof *seeds);
		if (child == 1)
			mprotect(common + 2000 * PAGE, 10 * PAGE, PROT_NONE);
		pid_t below = child == 2 ? fork() : -1;
		if (!below)
			paint(common + 5000 * PAGE, PAGE, seeds[5000] = 77);
		if (write(ready[1], "x", 1) != 1 || read(hold[0], &byte, 1) != 1)
			_exit(1);
		if (child == 1) {
			same(shown(common, size, "---p"), 10 * PAGE);
			mprotect(common + 2000 * PAGE, 10 * PAGE, PROT_READ);
		}
		same(shown(common, size, "r--p"), child == 1 ? 74 * PAGE : 64 * PAGE);
		expect_pages(below ? "child" : "grandchild", common, pages, seeds);
		common[300 * PAGE]++;
		if (below > 0)
			waitpid(below, &status, 0);
		_exit(0);
	}
	/* What the parent does now the children have not done. */
	for (int n = 0; n < HEIRS + 1; n++)
		if (read(ready[0], &byte, 1) != 1)
			die("ready");
	munmap(common + 8000 * PAGE, 16 * PAGE);
	for (size_t n = 6000; n < 6100; n++)
		paint(common + n * PAGE, PAGE, seeds[n] = 5 * n);
	pause_here();
	expect_pages("parent", common, 8000, seeds);
	expect_pages("parent", common + 8016 * PAGE, pages - 8016, seeds + 8016);
	same(shown(common, size, "r--p"), 64 * PAGE);
	for (int n = 0; n < HEIRS + 1; n++)
		same(write(hold[1], "x", 1), 1);
	for (int n = 0; n < HEIRS; n++) {
		same(waitpid(children[n], &status, 0), children[n]);
		same(status, 0);
	}
	expect_pages("parent", common, 8000, seeds);
}

int main(int argc, char **argv)
{
	static const struct check checks[] = {
		{ "advice", advice },
		{ "heirs", heirs },
	};
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
