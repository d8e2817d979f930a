// Holds a matrix in an AMX tile. Usage: amx DIR
//
// DIR/ready gets the process id once the tile is loaded; after a byte in DIR/go, DIR/result gets "same" or "other". Status 77 where the
// processor or the kernel has no AMX.
#define _GNU_SOURCE
#include <fcntl.h>
#include <immintrin.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int say(const char *dir, const char *name, const char *text)
{
	char path[4096], part[4104];
	FILE *file;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	snprintf(part, sizeof part, "%s.part", path);
	file = fopen(part, "w");
	fputs(text, file);
	fclose(file);
	return rename(part, path);
}

__attribute__((target("amx-tile"))) int main(int argc, char **argv)
{
	const int ask = 0x1023, tiles = 18;
	struct {
		unsigned char palette, start, reserved[14];
		unsigned short bytes[16];
		unsigned char rows[16];
	} config = { .palette = 1 };
	unsigned char before[16 * 64], after[16 * 64];
	char path[4096], pid[16], byte;
	int go;

	if (argc != 2)
		return 2;
	if (syscall(SYS_arch_prctl, ask, tiles))
		return 77;
	close_range(3, ~0U, 0);
	snprintf(path, sizeof path, "%s/go", argv[1]);
	go = open(path, O_RDWR);
	config.bytes[3] = 64;
	config.rows[3] = 16;
	for (unsigned n = 0; n < sizeof before; n++)
		before[n] = n * 7 + 1;
	snprintf(pid, sizeof pid, "%d", getpid());
	_tile_loadconfig(&config);
	_tile_loadd(3, before, 64);
	say(argv[1], "ready", pid);
	while (read(go, &byte, 1) != 1)
		;
	_tile_stored(3, after, 64);
	_tile_release();
	say(argv[1], "result", memcmp(before, after, sizeof after) ? "other" : "same");
	pause();
	return 0;
}
