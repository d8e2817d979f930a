/* System V shared memory. See check.h. */
#define _GNU_SOURCE
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>

#include "check.h"

#define MOST 8
static struct {
	int id;
	char *at;
	size_t size;
	struct shmid_ds before;
} segments[MOST];
static int count;

static int made(key_t key, size_t size, int mode)
{
	int id = shmget(key, size, IPC_CREAT | IPC_EXCL | mode);
	char *at = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
	if (at == (void *)-1)
		die("segment");
	paint(at, size, id + 1);
	segments[count].id = id;
	segments[count].at = at;
	segments[count++].size = size;
	return id;
}

static void *attached(int id, int flags)
{
	void *at = shmat(id, NULL, flags);
	if (at == (void *)-1)
		die("shmat");
	return at;
}

static void expect_as_before(int n)
{
	struct shmid_ds now, *before = &segments[n].before;
	if (shmctl(segments[n].id, IPC_STAT, &now)) {
		wrong("segment %d of number %d is not there", segments[n].id, n);
		return;
	}
	same(now.shm_perm.__key, before->shm_perm.__key);
	same(now.shm_perm.uid, before->shm_perm.uid);
	same(now.shm_perm.gid, before->shm_perm.gid);
	same(now.shm_perm.cuid, before->shm_perm.cuid);
	same(now.shm_perm.cgid, before->shm_perm.cgid);
	same(now.shm_perm.mode, before->shm_perm.mode);
	same(now.shm_segsz, before->shm_segsz);
	same(now.shm_nattch, before->shm_nattch);
	same(now.shm_cpid, before->shm_cpid);
	expect_painted("segment", segments[n].at, segments[n].size, segments[n].id + 1);
}

/* The name of the mapping at an address, in /proc/self/maps. */
static void name_of(const void *at, char *name, size_t size)
{
	char line[512], start[32];
	FILE *maps = fopen("/proc/self/maps", "re");
	snprintf(start, sizeof start, "%lx-", (unsigned long)at);
	*name = 0;
	while (maps && fgets(line, sizeof line, maps))
		if (!strncmp(line, start, strlen(start)))
			snprintf(name, size, "%s", strchr(line, '/') ? strchr(line, '/') : "");
	if (maps)
		fclose(maps);
}

static void kinds(void)
{
	size_t size = 5 * PAGE + 100;
	int ready[2], hold[2], status;
	char byte;
	if (pipe(ready) || pipe(hold))
		die("pipe");
	key_t key = ftok("go", 'A'), again = ftok("go", 'B');
	int plain = made(key, size, 0640);
	made(IPC_PRIVATE, PAGE, 0600);
	/* Two that end with their last attachment; another one has the key of the first by now. */
	int ends = made(again, 2 * PAGE, 0606);
	shmctl(ends, IPC_RMID, NULL);
	int private = made(IPC_PRIVATE, 7, 0777);
	shmctl(private, IPC_RMID, NULL);
	made(again, 3 * PAGE, 0604);
	/* Made by a process that is gone, of another user where that may be, and locked. */
	pid_t maker = fork();
	if (!maker) {
		if (!geteuid() && (setgid(54321) || setuid(54320)))
			_exit(1);
		int id = shmget(IPC_PRIVATE, 4 * PAGE, IPC_CREAT | 0666);
		_exit(write(ready[1], &id, sizeof id) != sizeof id);
	}
	int other;
	waitpid(maker, &status, 0);
	if (status || read(ready[0], &other, sizeof other) != sizeof other)
		die("maker");
	segments[count].id = other;
	segments[count].at = attached(other, 0);
	segments[count].size = 4 * PAGE;
	paint(segments[count++].at, 4 * PAGE, other + 1);
	shmctl(other, SHM_LOCK, NULL);
	if (!geteuid()) {
		struct shmid_ds owner = { .shm_perm = { .uid = 7, .gid = 8, .mode = 0640 } };
		shmctl(segments[1].id, IPC_SET, &owner);
	}
	/* The same at several addresses, in several ways. */
	char *second = attached(plain, 0), *readable = attached(plain, SHM_RDONLY), *runs = attached(private, SHM_EXEC);
	char *part = attached(plain, 0), *readable_part = attached(plain, SHM_RDONLY), *hidden = attached(plain, 0);
	munmap(part, 2 * PAGE);
	munmap(part + 3 * PAGE, 3 * PAGE);
	munmap(readable_part + PAGE, 5 * PAGE);
	mprotect(hidden + PAGE, PAGE, PROT_NONE);
	pid_t child = fork();
	if (!child) {
		for (int n = 0; n < count; n++)
			if (n != 2)
				shmdt(segments[n].at);
		char *own = attached(plain, 0);
		if (write(ready[1], "x", 1) != 1 || read(hold[0], &byte, 1) != 1)
			_exit(1);
		expect_painted("child", own, size, plain + 1);
		expect_painted("child, removed", segments[2].at, 2 * PAGE, ends + 1);
		own[8 * 100] = 'c';
		_exit(0);
	}
	if (read(ready[0], &byte, 1) != 1)
		die("child");
	char names[MOST][80], name[80];
	for (int n = 0; n < count; n++) {
		shmctl(segments[n].id, IPC_STAT, &segments[n].before);
		name_of(segments[n].at, names[n], sizeof names[n]);
	}
	pause_here();
	for (int n = 0; n < count; n++) {
		expect_as_before(n);
		name_of(segments[n].at, name, sizeof name);
		if (strcmp(name, names[n]))
			wrong("number %d is shown as %s was %s", n, name, names[n]);
	}
	expect(shmget(key, 0, 0) == plain);
	expect(shmget(again, 0, 0) == segments[4].id);
	same(shown(readable, 6 * PAGE, "r--s"), 6 * PAGE);
	same(shown(runs, PAGE, "rwxs"), PAGE);
	same(shown(hidden, 6 * PAGE, "---s"), PAGE);
	same(shown(hidden, 6 * PAGE, "rw-s"), 5 * PAGE);
	same(shown(part, 6 * PAGE, "rw-s"), PAGE);
	expect(mprotect(readable, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
	expect(mprotect(readable_part, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
	expect(!memcmp(part + 2 * PAGE, segments[0].at + 2 * PAGE, PAGE));
	/* All of them are one. */
	same(write(hold[1], "x", 1), 1);
	same(waitpid(child, &status, 0), child);
	same(status, 0);
	expect(second[800] == 'c' && readable[800] == 'c' && readable_part[800] == 'c' && segments[0].at[800] == 'c');
	expect(!shmdt(second) && !shmdt(readable) && !shmdt(runs) && !shmdt(hidden) && !shmdt(part) && !shmdt(readable_part));
	struct shmid_ds now;
	expect(!shmctl(plain, IPC_STAT, &now) && now.shm_nattch == 1);
	for (int n = 0; n < count; n++) {
		expect(!shmdt(segments[n].at));
		if (n == 2 || n == 3)
			expect(shmctl(segments[n].id, IPC_STAT, &now) == -1 && errno == EINVAL);
		else
			expect(!shmctl(segments[n].id, IPC_RMID, NULL));
	}
}

/* A process that is no child has it too. */
static void outside(void)
{
	int id = made(IPC_PRIVATE, PAGE, 0600);
	mkfifo("end", 0600);
	pid_t between = fork();
	if (!between) {
		if (fork())
			_exit(0);
		setsid();
		close_range(0, ~0U, 0);
		leave("outside", "");
		alarm(60);
		_exit(open("end", O_RDONLY));
	}
	waitpid(between, NULL, 0);
	while (access("outside", F_OK))
		usleep(1000);
	shmctl(id, IPC_RMID, NULL);
	pause_here();
	expect_painted("segment", segments[0].at, PAGE, id + 1);
	int end = open("end", O_WRONLY);
	expect(end >= 0);
	close(end);
}

/* A process that has a change of a semaphore undone at its end, and a child that has not. */
static void undo(void)
{
	int id = semget(IPC_PRIVATE, 1, IPC_CREAT | 0600), hold[2], status;
	struct sembuf one = { 0, 1, SEM_UNDO };
	char byte;
	if (id < 0 || pipe(hold))
		die("semget");
	pid_t child = fork();
	if (!child)
		_exit(read(hold[0], &byte, 1) != 1);
	if (semop(id, &one, 1))
		die("semop");
	pause_here();
	same(write(hold[1], "x", 1), 1);
	same(waitpid(child, &status, 0), child);
	expect(!semctl(id, 0, IPC_RMID));
}

int main(int argc, char **argv)
{
	static const struct check checks[] = {
		{ "kinds", kinds },
		{ "outside", outside },
		{ "undo", undo },
	};
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
