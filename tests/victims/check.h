/* What self-checking victims have in common.
 *
 *   VICTIM DIR CHECK
 *
 * A check prepares one kind of state, says so, waits, and checks that the state is what it was. The victim detaches (a session leader without
 * terminal, orphaned); DIR/ready holds its PID once all is prepared. One byte through the FIFO DIR/go lets it check. DIR/result then holds one
 * line for each thing that was wrong, and "done" as its last line. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096ul

static int go, result;

static void die(const char *what)
{
	perror(what);
	_exit(1);
}

__attribute__((format(printf, 1, 2), unused)) static void wrong(const char *format, ...)
{
	va_list list;
	va_start(list, format);
	vdprintf(result, format, list);
	va_end(list);
	dprintf(result, "\n");
}

#define expect(condition) do { if (!(condition)) wrong("line %d: %s (errno %d)", __LINE__, #condition, errno); } while (0)
/* For numbers: says both. */
#define same(now, before) do { long long _now = (long long)(now), _before = (long long)(before); \
	if (_now != _before) wrong("line %d: %s is %lld, was %lld", __LINE__, #now, _now, _before); } while (0)

__attribute__((unused)) static void leave(const char *name, const char *text)
{
	char part[64];
	snprintf(part, sizeof part, "%s.part", name);
	FILE *file = fopen(part, "we");
	if (!file || fputs(text, file) < 0 || fclose(file) || rename(part, name))
		die(name);
}

__attribute__((unused)) static void say_ready(pid_t pid)
{
	char text[16];
	snprintf(text, sizeof text, "%d", pid);
	leave("ready", text);
}

__attribute__((unused)) static void wait_for_go(void)
{
	char byte;
	ssize_t got = read(go, &byte, 1);
	if (got != 1)
		wrong("the wait returned %zd, errno %d", got, errno);
}

static char *brk_before, *brk_after;

__attribute__((unused)) static void pause_here(void)
{
	say_ready(getpid());
	brk_before = sbrk(0);
	wait_for_go();
	brk_after = sbrk(0);
}

__attribute__((unused)) static void paint(void *at, size_t size, uint64_t seed)
{
	uint64_t *word = at;
	for (size_t n = 0; n < size / 8; n++)
		word[n] = seed * 0x9e3779b97f4a7c15ull + n;
}

__attribute__((unused)) static void expect_painted(const char *what, const void *at, size_t size, uint64_t seed)
{
	const uint64_t *word = at;
	for (size_t n = 0; n < size / 8; n++)
		if (word[n] != seed * 0x9e3779b97f4a7c15ull + n) {
			wrong("%s: byte %zu of %zu changed", what, n * 8, size);
			return;
		}
}

__attribute__((unused)) static void *map(size_t size, int prot, int flags, int fd, off_t offset)
{
	void *at = mmap(NULL, size, prot, flags, fd, offset);
	if (at == MAP_FAILED)
		die("mmap");
	return at;
}

/* How many bytes of this range /proc/self/maps shows with these permissions. */
__attribute__((unused)) static size_t shown(const void *start, size_t size, const char *permissions)
{
	char line[512], perms[8];
	unsigned long from, to, first = (unsigned long)start, last = first + size;
	size_t total = 0;
	FILE *maps = fopen("/proc/self/maps", "re");
	while (maps && fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx %7s", &from, &to, perms) == 3 && from < last && first < to && !strcmp(perms, permissions))
			total += (to < last ? to : last) - (from > first ? from : first);
	if (maps)
		fclose(maps);
	return total;
}

struct check {
	const char *name;
	void (*run)(void);
};

static int run_check(int argc, char **argv, const struct check *checks, size_t count)
{
	if (argc != 3 || chdir(argv[1]))
		die("usage: VICTIM DIR CHECK");
	mkfifo("go", 0600);
	if (fork())
		_exit(0);
	setsid();
	close_range(3, ~0U, 0);
	go = open("go", O_RDWR | O_CLOEXEC);
	result = open("result", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (go < 0 || result < 0)
		die("open");
	for (size_t n = 0; n < count; n++)
		if (!strcmp(checks[n].name, argv[2])) {
			checks[n].run();
			dprintf(result, "done\n");
			return 0;
		}
	die("no such check");
	return 1;
}
