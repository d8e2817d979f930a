/* Holds much memory.
 *
 *   big DIR MIB
 *
 * Detaches (a session leader without terminal, orphaned, without descriptors), touches MIB mebibytes with content that no two pages share,
 * leaves its PID in DIR/pids, and waits. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	_exit(1);
}

int main(int argc, char **argv)
{
	if (argc != 3 || chdir(argv[1]))
		die("usage: big DIR MIB");
	size_t size = strtoull(argv[2], NULL, 10) << 20;
	if (fork())
		_exit(0);
	setsid();
	uint64_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	for (size_t word = 0; word < size / sizeof *memory; word++)
		memory[word] = word * 0x9e3779b97f4a7c15;
	FILE *file = fopen("pids.part", "we");
	if (!file || fprintf(file, "%d", getpid()) < 0 || fclose(file) || rename("pids.part", "pids"))
		die("pids");
	close_range(0, ~0U, 0);
	for (;;)
		pause();
}
