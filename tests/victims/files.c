/* What processes do with files; see check.h. */
#define _GNU_SOURCE
#include "check.h"
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int must_open(const char *path, int flags)
{
	int fd = open(path, flags, 0600);
	if (fd < 0)
		die(path);
	return fd;
}

static struct flock range(short type, off_t start, off_t len)
{
	return (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
}

static void lock_range(int fd, int command, short type, off_t start, off_t len)
{
	struct flock lock = range(type, start, len);
	if (fcntl(fd, command, &lock))
		die("fcntl lock");
}

/* What another owner would be told of a range that it wants for writing. */
static void expect_lock(int fd, int command, off_t at, short type, off_t start, off_t len, pid_t pid)
{
	struct flock lock = range(F_WRLCK, at, 1);
	same(fcntl(fd, command, &lock), 0);
	same(lock.l_type, type);
	if (lock.l_type == F_UNLCK)
		return;
	same(lock.l_start, start);
	same(lock.l_len, len);
	same(lock.l_pid, pid);
}

/* Runs a look in a child, who is another owner. */
static void in_child(void (*look)(pid_t parent))
{
	pid_t parent = getpid(), child = fork();
	int status;
	if (!child) {
		look(parent);
		_exit(0);
	}
	same(waitpid(child, &status, 0), child);
	same(status, 0);
}

static void look_at_posix_locks(pid_t parent)
{
	int fd = must_open("posix", O_RDWR);
	expect_lock(fd, F_GETLK, 0, F_UNLCK, 0, 0, 0);
	expect_lock(fd, F_GETLK, 7, F_WRLCK, 5, 10, parent);
	expect_lock(fd, F_GETLK, 16, F_UNLCK, 0, 0, 0);
	expect_lock(fd, F_GETLK, 1000, F_RDLCK, 100, 0, parent);
	same(flock(must_open("flocked", O_RDONLY), LOCK_SH | LOCK_NB), -1);
	same(flock(must_open("shared", O_RDONLY), LOCK_EX | LOCK_NB), -1);
	same(flock(must_open("shared", O_RDONLY), LOCK_SH | LOCK_NB), 0);
	expect_lock(must_open("ofd", O_RDWR), F_OFD_GETLK, 3, F_WRLCK, 2, 3, -1);
}

static pid_t waiting_child(void (*wait)(void))
{
	pid_t child = fork();
	if (!child) {
		wait();
		_exit(0);
	}
	/* It waits when /proc/locks says so. */
	char line[256];
	for (int waits = 0; !waits;) {
		FILE *file = fopen("/proc/locks", "re");
		while (file && fgets(line, sizeof line, file)) {
			char *arrow = strstr(line, "-> ");
			int pid;
			waits |= arrow && sscanf(arrow, "-> %*s %*s %*s %d", &pid) == 1 && pid == child;
		}
		if (!file || kill(child, 0))
			die("waiting child");
		fclose(file);
	}
	return child;
}

static void wait_for_posix(void)
{
	lock_range(must_open("posix", O_RDWR), F_SETLKW, F_WRLCK, 5, 1);
}

static void wait_for_flock(void)
{
	if (flock(must_open("flocked", O_RDONLY), LOCK_EX))
		_exit(1);
}

static void locks(void)
{
	int flocked = must_open("flocked", O_RDWR | O_CREAT), posix = must_open("posix", O_RDWR | O_CREAT);
	int shared = must_open("shared", O_RDONLY | O_CREAT), second = must_open("shared", O_RDONLY);
	int ofd = must_open("ofd", O_RDWR | O_CREAT), again = dup(ofd), other = must_open("posix", O_RDONLY), status;
	int leased = must_open("leased", O_RDONLY | O_CREAT), mine = must_open("mine", O_RDWR | O_CREAT);
	int inherited = must_open("inherited", O_RDWR | O_CREAT);
	if (flock(flocked, LOCK_EX) || flock(shared, LOCK_SH) || flock(second, LOCK_SH))
		die("flock");
	lock_range(posix, F_SETLK, F_WRLCK, 5, 10);
	lock_range(other, F_SETLK, F_RDLCK, 100, 0);
	lock_range(ofd, F_OFD_SETLK, F_WRLCK, 2, 3);
	if (fcntl(leased, F_SETLEASE, F_RDLCK) || fcntl(mine, F_SETLEASE, F_WRLCK))
		die("lease");
	pid_t first = waiting_child(wait_for_posix), next = waiting_child(wait_for_flock);
	/* It has the lock of a description that it shares with us. */
	int pipes[2];
	if (pipe(pipes))
		die("pipe");
	pid_t setter = fork();
	if (!setter) {
		char byte;
		close(pipes[1]);
		if (flock(inherited, LOCK_EX))
			_exit(1);
		leave("set", "");
		_exit(read(pipes[0], &byte, 1) != 0);
	}
	while (access("set", F_OK))
		sched_yield();
	pause_here();
	in_child(look_at_posix_locks);
	same(fcntl(leased, F_GETLEASE), F_RDLCK);
	same(fcntl(mine, F_GETLEASE), F_WRLCK);
	same(waitpid(first, &status, WNOHANG), 0);
	same(waitpid(next, &status, WNOHANG), 0);
	same(flock(must_open("inherited", O_RDONLY), LOCK_SH | LOCK_NB), -1);
	lock_range(posix, F_SETLK, F_UNLCK, 0, 0);
	same(waitpid(first, &status, 0), first);
	same(status, 0);
	same(flock(flocked, LOCK_UN), 0);
	same(waitpid(next, &status, 0), next);
	same(status, 0);
	close(pipes[1]);
	same(waitpid(setter, &status, 0), setter);
	same(status, 0);
	same(flock(must_open("inherited", O_RDONLY), LOCK_SH | LOCK_NB), -1);
	same(flock(inherited, LOCK_UN), 0);
	same(flock(must_open("inherited", O_RDONLY), LOCK_SH | LOCK_NB), 0);
	same(close(again), 0);
	expect_lock(must_open("ofd", O_RDWR), F_OFD_GETLK, 3, F_WRLCK, 2, 3, -1);
}

/* A grandchild whose parent ends is no member of the tree: it is adopted by somebody outside. */
static void lock_wanted_outside(void)
{
	lock_range(must_open("posix", O_RDWR | O_CREAT), F_SETLK, F_WRLCK, 5, 10);
	int pipes[2], status;
	pid_t outsider;
	if (pipe(pipes))
		die("pipe");
	pid_t child = fork();
	if (!child) {
		setsid();
		close(pipes[0]);
		outsider = waiting_child(wait_for_posix);
		_exit(write(pipes[1], &outsider, sizeof outsider) != sizeof outsider);
	}
	close(pipes[1]);
	if (read(pipes[0], &outsider, sizeof outsider) != sizeof outsider || waitpid(child, &status, 0) != child)
		die("outsider");
	close(pipes[0]);
	pause_here();
	kill(outsider, SIGKILL);
}

static void breaking_lease(void)
{
	int fd = must_open("leased", O_RDWR | O_CREAT);
	signal(SIGIO, SIG_IGN);
	if (fcntl(fd, F_SETLEASE, F_WRLCK))
		die("lease");
	pid_t child = fork();
	if (!child) {
		close(fd);
		_exit(open("leased", O_RDONLY | O_NONBLOCK) >= 0);
	}
	int status;
	same(waitpid(child, &status, 0), child);
	pause_here();
	same(fcntl(fd, F_GETLEASE), F_RDLCK);
}

static const struct check checks[] = {
	{ "locks", locks },
	{ "lock_wanted_outside", lock_wanted_outside },
	{ "breaking_lease", breaking_lease },
};

int main(int argc, char **argv)
{
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
