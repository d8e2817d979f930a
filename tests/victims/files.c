/* What processes do with files; see check.h. */
#define _GNU_SOURCE
#include "check.h"
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <linux/memfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
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
		/* Nobody else ends it where the test fails. */
		alarm(120);
		wait();
		_exit(0);
	}
	/* It waits when /proc/locks says so, which has no process for a lock of a description. */
	char line[256];
	struct stat ofd = { 0 };
	stat("ofd", &ofd);
	for (int waits = 0; !waits;) {
		FILE *file = fopen("/proc/locks", "re");
		while (file && fgets(line, sizeof line, file)) {
			char *arrow = strstr(line, "-> ");
			unsigned long inode;
			int pid;
			if (arrow && sscanf(arrow, "-> %*s %*s %*s %d %*x:%*x:%lu", &pid, &inode) == 2)
				waits |= pid == child || (pid == -1 && inode == ofd.st_ino);
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

static void wait_for_ofd(void)
{
	lock_range(must_open("ofd", O_RDWR), F_OFD_SETLKW, F_WRLCK, 2, 1);
}

/* A grandchild whose parent ends is no member of the tree: it is adopted by somebody outside. */
static void wanted_outside(void (*wait)(void))
{
	int pipes[2], status;
	pid_t outsider;
	if (pipe(pipes))
		die("pipe");
	pid_t child = fork();
	if (!child) {
		setsid();
		close(pipes[0]);
		outsider = waiting_child(wait);
		_exit(write(pipes[1], &outsider, sizeof outsider) != sizeof outsider);
	}
	close(pipes[1]);
	if (read(pipes[0], &outsider, sizeof outsider) != sizeof outsider || waitpid(child, &status, 0) != child)
		die("outsider");
	close(pipes[0]);
	pause_here();
	kill(outsider, SIGKILL);
}

static void lock_wanted_outside(void)
{
	lock_range(must_open("posix", O_RDWR | O_CREAT), F_SETLK, F_WRLCK, 5, 10);
	wanted_outside(wait_for_posix);
}

static void ofd_lock_wanted_outside(void)
{
	lock_range(must_open("ofd", O_RDWR | O_CREAT), F_OFD_SETLK, F_WRLCK, 2, 3);
	wanted_outside(wait_for_ofd);
}

/* The mapping keeps the file open a second time when it is made again. */
static void lease_on_mapped_file(void)
{
	int fd = must_open("leased", O_RDWR | O_CREAT);
	if (ftruncate(fd, PAGE))
		die("ftruncate");
	char *at = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fcntl(fd, F_SETLEASE, F_WRLCK))
		die("lease");
	pause_here();
	same(fcntl(fd, F_GETLEASE), F_WRLCK);
	at[0] = 1;
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

static void expect_content(int fd, const char *text)
{
	char got[64] = "";
	struct stat stat;
	expect(pread(fd, got, sizeof got - 1, 0) == (ssize_t)strlen(text) && !strcmp(got, text));
	expect(!fstat(fd, &stat) && stat.st_nlink == 0);
}

static void removed_files(void)
{
	struct stat before, after;
	char link[256], name[64];
	int file = must_open("gone", O_RDWR | O_CREAT | O_CLOEXEC), again = must_open("gone", O_RDONLY);
	int append = must_open("gone", O_WRONLY | O_APPEND), path = must_open("gone", O_PATH), copy = dup(file);
	int sparse = must_open("sparse", O_RDWR | O_CREAT), empty = must_open("empty", O_RDONLY | O_CREAT);
	int nameless = open(".", O_TMPFILE | O_RDWR, 0640);
	mkdir("dir", 0700);
	int deep = must_open("dir/deep", O_RDWR | O_CREAT);
	if (nameless < 0 || write(file, "0123456789", 10) != 10 || write(nameless, "no name", 7) != 7 || write(deep, "deep", 4) != 4)
		die("write");
	if (pwrite(sparse, "far", 3, 1 << 30) != 3)
		die("write");
	fchmod(file, 04751);
	if (!getuid() && fchown(file, 12, 34))
		die("chown");
	fchmod(file, 04751);
	struct timespec times[] = { { 1000, 123456789 }, { 2000, 987654321 } };
	futimens(file, times);
	lseek(file, 4, SEEK_SET);
	lseek(again, 7, SEEK_SET);
	unlink("gone");
	unlink("sparse");
	unlink("empty");
	unlink("dir/deep");
	rmdir("dir");
	fstat(file, &before);
	flock(file, LOCK_EX);
	pause_here();
	fstat(file, &after);
	same(after.st_mode, before.st_mode);
	same(after.st_uid, before.st_uid);
	same(after.st_gid, before.st_gid);
	same(after.st_size, before.st_size);
	same(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
	same(after.st_mtim.tv_sec, before.st_mtim.tv_sec);
	same(after.st_atim.tv_sec, before.st_atim.tv_sec);
	same(lseek(file, 0, SEEK_CUR), 4);
	same(lseek(copy, 0, SEEK_CUR), 4);
	same(lseek(again, 0, SEEK_CUR), 7);
	expect(fcntl(append, F_GETFL) & O_APPEND && fcntl(path, F_GETFL) & O_PATH);
	same(write(append, "more", 4), 4);
	expect_content(file, "0123456789more");
	expect_content(again, "0123456789more");
	struct stat one, other;
	expect(!fstat(file, &one) && !fstat(path, &other) && one.st_ino == other.st_ino && one.st_dev == other.st_dev);
	snprintf(name, sizeof name, "/proc/self/fd/%d", file);
	ssize_t len = readlink(name, link, sizeof link - 1);
	link[len > 0 ? len : 0] = 0;
	expect(strstr(link, "/gone (deleted)"));
	expect_content(deep, "deep");
	expect_content(nameless, "no name");
	expect_content(empty, "");
	expect(access("gone", F_OK) && access("dir", F_OK) && access("sparse", F_OK));
	same(lseek(sparse, 0, SEEK_DATA), 1 << 30);
	fstat(sparse, &after);
	same(after.st_size, (1 << 30) + 3);
	/* A file that never had a name may still get one. */
	snprintf(name, sizeof name, "/proc/self/fd/%d", nameless);
	same(linkat(AT_FDCWD, name, AT_FDCWD, "named", AT_SYMLINK_FOLLOW), 0);
	expect(!stat("named", &one) && !fstat(nameless, &other) && one.st_ino == other.st_ino && one.st_mode == (S_IFREG | 0640));
}

/* Another file has the name by now. */
static void replaced_file(void)
{
	struct stat stat;
	int replaced = must_open("replaced", O_RDWR | O_CREAT);
	if (write(replaced, "first", 5) != 5 || unlink("replaced"))
		die("replaced");
	close(must_open("replaced", O_RDWR | O_CREAT));
	pause_here();
	expect_content(replaced, "first");
	expect(lstat("replaced", &stat) == 0 && stat.st_size == 0);
}

static void removed_memory(void)
{
	size_t size = 16 * PAGE;
	int file = must_open("mapped", O_RDWR | O_CREAT), shm = must_open("/dev/shm/ptyagent-victim", O_RDWR | O_CREAT | O_EXCL);
	if (ftruncate(file, size) || ftruncate(shm, size))
		die("ftruncate");
	char *shared = map(size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), *memory = map(size, PROT_READ | PROT_WRITE, MAP_SHARED, shm, 0);
	char *second = map(size, PROT_READ, MAP_SHARED, shm, 0);
	paint(shared, size, 1);
	paint(memory, size, 2);
	char *private = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	paint(private, PAGE, 3);
	unlink("mapped");
	unlink("/dev/shm/ptyagent-victim");
	close(shm);
	pid_t child = fork();
	int status;
	if (!child) {
		while (memory[0] != 'x')
			usleep(1000);
		memory[1] = 'y';
		_exit(0);
	}
	pause_here();
	expect_painted("shared mapping of a removed file", shared, size, 1);
	expect_painted("shared mapping of removed shared memory", memory, size, 2);
	expect_painted("second view", second, size, 2);
	expect_painted("private page", private, PAGE, 3);
	for (size_t n = PAGE / 8; n < size / 8; n++)
		if (((uint64_t *)private)[n] != 0x9e3779b97f4a7c15ull + n) {
			wrong("private mapping of a removed file: word %zu", n);
			break;
		}
	shared[2 * PAGE] = 'z';
	char byte;
	same(pread(file, &byte, 1, 2 * PAGE), 1);
	same(byte, 'z');
	memory[0] = 'x';
	same(waitpid(child, &status, 0), child);
	same(memory[1], 'y');
	same(second[1], 'y');
}

/* Runs itself from a file that is gone. */
static void removed_program(void)
{
	static char self[4096];
	if (readlink("/proc/self/exe", self, sizeof self - 1) < 0)
		die("exe");
	if (!strstr(self, "/copy")) {
		snprintf(self, sizeof self, "cp /proc/%d/exe copy", getpid());
		if (system(self))
			die("cp");
		fcntl(go, F_SETFD, 0);
		fcntl(result, F_SETFD, 0);
		char numbers[2][16];
		snprintf(numbers[0], 16, "%d", go);
		snprintf(numbers[1], 16, "%d", result);
		execl("copy", "copy", ".", "removed_program", numbers[0], numbers[1], NULL);
		die("exec");
	}
	unlink("copy");
	pause_here();
	ssize_t got = readlink("/proc/self/exe", self, sizeof self - 1);
	expect(got > 15);
	self[got > 0 ? got : 0] = 0;
	expect(strstr(self, "/copy (deleted)"));
}

static void removed_with_another_name(void)
{
	int file = must_open("one", O_RDWR | O_CREAT);
	if (link("one", "two") || unlink("one"))
		die("link");
	pause_here();
	expect(file >= 0);
}

static void large_removed_file(void)
{
	int file = must_open("large", O_RDWR | O_CREAT);
	char block[4096] = "x";
	for (int n = 0; n <= 256; n++)
		if (write(file, block, sizeof block) != sizeof block)
			die("write");
	unlink("large");
	pause_here();
}

static void removed_file_held_outside(void)
{
	int file = must_open("gone", O_RDWR | O_CREAT), pipes[2], status;
	pid_t outsider;
	if (pipe(pipes))
		die("pipe");
	pid_t child = fork();
	if (!child) {
		setsid();
		outsider = fork();
		if (!outsider) {
			for (int fd = 0; fd < 32; fd++)
				if (fd != file)
					close(fd);
			alarm(120);
			pause();
			_exit(0);
		}
		_exit(write(pipes[1], &outsider, sizeof outsider) != sizeof outsider);
	}
	if (read(pipes[0], &outsider, sizeof outsider) != sizeof outsider || waitpid(child, &status, 0) != child)
		die("outsider");
	close(pipes[0]);
	close(pipes[1]);
	unlink("gone");
	pause_here();
	kill(outsider, SIGKILL);
}

static int reopen(int fd, int flags)
{
	char name[64];
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	return must_open(name, flags);
}

static int must_memfd(const char *name, unsigned flags, size_t size)
{
	int fd = memfd_create(name, flags);
	if (fd < 0 || ftruncate(fd, size))
		die("memfd");
	return fd;
}

#define SEAL_FUTURE_WRITE 0x10

static void memfds(void)
{
	size_t size = 16 * PAGE;
	struct stat one, other;
	int status, plain = must_memfd("plain name", MFD_CLOEXEC, 0), again = reopen(plain, O_RDONLY), copy = dup(plain);
	if (write(plain, "0123456789", 10) != 10)
		die("write");
	lseek(plain, 4, SEEK_SET);
	lseek(again, 7, SEEK_SET);
	fchmod(plain, 0640);
	int odd = must_memfd("", 0, 5 * PAGE + 100), sealed = must_memfd("sealed", MFD_ALLOW_SEALING, size);
	if (pwrite(odd, "end", 3, 5 * PAGE + 97) != 3)
		die("pwrite");
	int future = must_memfd("future", MFD_ALLOW_SEALING, size), fixed = must_memfd("fixed", MFD_ALLOW_SEALING, PAGE);
	char *before = map(size, PROT_READ | PROT_WRITE, MAP_SHARED, future, 0);
	paint(before, size, 1);
	char *filling = map(size, PROT_READ | PROT_WRITE, MAP_SHARED, sealed, 0);
	paint(filling, size, 2);
	munmap(filling, size);
	if (fcntl(future, F_ADD_SEALS, SEAL_FUTURE_WRITE) || fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		die("seal");
	if (fcntl(fixed, F_ADD_SEALS, F_SEAL_SHRINK))
		die("seal");
	int readable = reopen(sealed, O_RDONLY);
	char *shown_sealed = map(size, PROT_READ, MAP_SHARED, readable, 0), *private = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE, sealed, 0);
	paint(private, PAGE, 3);
	int closed = must_memfd("closed", MFD_CLOEXEC, size);
	char *memory = map(size, PROT_READ | PROT_WRITE, MAP_SHARED, closed, 0), *second = map(PAGE, PROT_READ, MAP_SHARED, closed, 8 * PAGE);
	paint(memory, size, 4);
	close(closed);
	int seals[] = { fcntl(plain, F_GET_SEALS), fcntl(sealed, F_GET_SEALS), fcntl(future, F_GET_SEALS), fcntl(fixed, F_GET_SEALS) };
	pid_t child = fork();
	if (!child) {
		while (memory[0] != 'x')
			usleep(1000);
		memory[8 * PAGE] = 'y';
		_exit(lseek(plain, 0, SEEK_CUR) != 4);
	}
	pause_here();
	same(fcntl(plain, F_GET_SEALS), seals[0]);
	same(fcntl(sealed, F_GET_SEALS), seals[1]);
	same(fcntl(future, F_GET_SEALS), seals[2]);
	same(fcntl(fixed, F_GET_SEALS), seals[3]);
	same(fcntl(plain, F_GETFD), FD_CLOEXEC);
	same(fcntl(copy, F_GETFD), 0);
	same(lseek(copy, 0, SEEK_CUR), 4);
	same(lseek(again, 0, SEEK_CUR), 7);
	same(fcntl(again, F_GETFL) & O_ACCMODE, O_RDONLY);
	expect(!fstat(plain, &one) && !fstat(again, &other) && one.st_ino == other.st_ino && one.st_mode == (S_IFREG | 0640));
	expect_content(plain, "0123456789");
	expect(!fstat(odd, &one) && one.st_size == (off_t)(5 * PAGE + 100) && one.st_blocks * 512 == (long)PAGE);
	char end[8] = "";
	same(pread(odd, end, 8, 5 * PAGE + 97), 3);
	expect(!strcmp(end, "end"));
	expect_painted("mapped before the seal", before, size, 1);
	before[0]++;
	same(pwrite(future, "x", 1, 0), -1);
	expect(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, future, 0) == MAP_FAILED);
	expect_painted("sealed", shown_sealed, size, 2);
	expect_painted("private page of a sealed file", private, PAGE, 3);
	same(pwrite(sealed, "x", 1, 0), -1);
	same(ftruncate(fixed, 0), -1);
	same(ftruncate(fixed, 2 * PAGE), 0);
	expect_painted("only mapped", memory, size, 4);
	expect(!memcmp(memory + 8 * PAGE, second, PAGE));
	memory[0] = 'x';
	same(waitpid(child, &status, 0), child);
	same(status, 0);
	same(second[0], 'y');
}

static void memfd_held_outside(void)
{
	int fd = must_memfd("shared", 0, PAGE), pipes[2], status;
	pid_t outsider;
	char *memory = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (pipe(pipes))
		die("pipe");
	pid_t child = fork();
	if (!child) {
		setsid();
		outsider = fork();
		if (!outsider) {
			close_range(0, ~0U, 0);
			alarm(120);
			pause();
			_exit(0);
		}
		_exit(write(pipes[1], &outsider, sizeof outsider) != sizeof outsider);
	}
	if (read(pipes[0], &outsider, sizeof outsider) != sizeof outsider || waitpid(child, &status, 0) != child)
		die("outsider");
	close(pipes[0]);
	close(pipes[1]);
	munmap(memory, PAGE);
	pause_here();
	kill(outsider, SIGKILL);
}

static void expect_link(int fd, const char *end)
{
	char name[64], link[256] = "";
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	ssize_t len = readlink(name, link, sizeof link - 1);
	expect(len >= (ssize_t)strlen(end) && !strcmp(link + len - strlen(end), end));
}

static void paths(void)
{
	static const char *const devices[] = { "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom" };
	struct stat stat;
	char text[4096], seen[300] = "", name[16];
	int fds[5];
	if (symlink("nowhere", "link") || mkfifo("pipe", 0600) || mkdir("many", 0700))
		die("link");
	for (int n = 0; n < 200; n++) {
		snprintf(name, sizeof name, "many/%d", n);
		close(must_open(name, O_CREAT | O_WRONLY));
	}
	int handle = must_open("link", O_PATH | O_NOFOLLOW), fifo = must_open("pipe", O_PATH), null = must_open("/dev/null", O_PATH);
	int direct = must_open("direct", O_RDWR | O_CREAT | O_DIRECT), append = must_open("append", O_RDWR | O_CREAT | O_APPEND | O_DSYNC);
	int meminfo = must_open("/proc/meminfo", O_RDONLY), sys = must_open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY);
	for (int n = 0; n < 5; n++)
		fds[n] = must_open(devices[n], O_RDWR);
	if (write(append, "text", 4) != 4 || read(meminfo, text, 100) != 100)
		die("write");
	int flags = fcntl(direct, F_GETFL), sync = fcntl(append, F_GETFL);
	int directory = must_open("many", O_RDONLY | O_DIRECTORY);
	struct dirent64 *entry;
	ssize_t len = syscall(SYS_getdents64, directory, text, 2048);
	for (char *at = text; at < text + len; at += entry->d_reclen) {
		entry = (struct dirent64 *)at;
		if (entry->d_name[0] != '.')
			seen[atoi(entry->d_name)]++;
	}
	off_t position = lseek(directory, 0, SEEK_CUR);
	pause_here();
	expect(!fstat(handle, &stat) && S_ISLNK(stat.st_mode));
	same(readlinkat(handle, "", text, sizeof text), 7);
	expect(!fstat(fifo, &stat) && S_ISFIFO(stat.st_mode));
	same(fcntl(fifo, F_GETFL) & O_PATH, O_PATH);
	expect_link(null, "/dev/null");
	same(fcntl(null, F_GETFL) & O_PATH, O_PATH);
	same(fcntl(direct, F_GETFL), flags);
	same(fcntl(append, F_GETFL), sync);
	same(write(append, "more", 4), 4);
	expect(pread(append, text, 8, 0) == 8 && !memcmp(text, "textmore", 8));
	same(lseek(meminfo, 0, SEEK_CUR), 100);
	expect(read(meminfo, text, 100) == 100 && pread(sys, text, 100, 0) > 10);
	same(write(fds[0], "x", 1), 1);
	expect(read(fds[0], text, 8) == 0 && read(fds[1], text, 8) == 8 && !text[0]);
	expect(write(fds[2], "x", 1) == -1 && errno == ENOSPC);
	expect(read(fds[3], text, 8) == 8 && read(fds[4], text, 8) == 8);
	same(lseek(directory, 0, SEEK_CUR), position);
	while ((len = syscall(SYS_getdents64, directory, text, 2048)) > 0)
		for (char *at = text; at < text + len; at += entry->d_reclen) {
			entry = (struct dirent64 *)at;
			if (entry->d_name[0] != '.')
				seen[atoi(entry->d_name)]++;
		}
	for (int n = 0; n < 200; n++)
		same(seen[n], 1);
}

static void process_file(void)
{
	char text[8];
	int fd = must_open("/proc/self/status", O_RDONLY);
	pause_here();
	same(read(fd, text, sizeof text), sizeof text);
}

static void grown_log(void)
{
	char text[16];
	int fd = must_open("log", O_RDWR | O_CREAT | O_APPEND);
	if (write(fd, "first", 5) != 5)
		die("write");
	pause_here();
	same(write(fd, "last", 4), 4);
	expect(pread(fd, text, 16, 0) == 13 && !memcmp(text, "firstmorelast", 13));
}

static void unchanged_log(void)
{
	int fd = must_open("log", O_RDWR | O_CREAT | O_APPEND);
	pause_here();
	same(write(fd, "last", 4), 4);
}

static void expect_event(int fd, int wd, uint32_t mask, const char *name)
{
	union {
		struct inotify_event event;
		char bytes[512];
	} got;
	memset(&got, 0, sizeof got);
	/* Room for one event only. */
	ssize_t len = read(fd, &got, sizeof got.event + (*name ? 16 : 0));
	expect(len >= (ssize_t)sizeof got.event);
	same(got.event.wd, wd);
	same(got.event.mask, mask);
	expect(!strcmp(got.event.len ? got.event.name : "", name));
	same(len, sizeof got.event + got.event.len);
}

static int watch(int fd, const char *path, uint32_t mask)
{
	int wd = inotify_add_watch(fd, path, mask);
	if (wd < 0)
		die("inotify_add_watch");
	return wd;
}

static void inotify(void)
{
	char byte;
	int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), empty = inotify_init(), other = inotify_init1(IN_NONBLOCK);
	int log = must_open("log", O_WRONLY | O_CREAT);
	mkdir("dir", 0700);
	if (symlink("nowhere", "link"))
		die("symlink");
	int first = watch(fd, "log", IN_MODIFY), gone = watch(fd, "/", IN_CREATE), second = watch(fd, "dir", IN_ALL_EVENTS | IN_EXCL_UNLINK);
	inotify_rm_watch(fd, gone);
	expect_event(fd, gone, IN_IGNORED, "");
	int third = watch(fd, "link", IN_ATTRIB | IN_DELETE_SELF | IN_DONT_FOLLOW), once = watch(other, "log", IN_MODIFY | IN_ONESHOT);
	/* Nobody is to see that the file of a mapping is opened again and closed. */
	mkdir("mapped", 0700);
	int mapped = must_open("mapped/file", O_RDWR | O_CREAT);
	if (write(mapped, "text", 4) != 4)
		die("write");
	char *text = map(PAGE, PROT_READ, MAP_SHARED, mapped, 0);
	close(mapped);
	int quiet = inotify_init1(IN_NONBLOCK), unseen = watch(quiet, "mapped", IN_OPEN | IN_CLOSE);
	same(third, 4);
	pause_here();
	same(fcntl(fd, F_GETFD), FD_CLOEXEC);
	same(fcntl(empty, F_GETFD), 0);
	same(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	same(fcntl(empty, F_GETFL) & O_NONBLOCK, 0);
	expect(read(fd, &byte, 1) == -1 && errno == EAGAIN);
	expect(read(other, &byte, 1) == -1 && errno == EAGAIN);
	expect(read(quiet, &byte, 1) == -1 && errno == EAGAIN);
	expect(!memcmp(text, "text", 4));
	close(must_open("mapped/file", O_WRONLY));
	expect_event(quiet, unseen, IN_OPEN, "file");
	same(write(log, "x", 1), 1);
	expect_event(fd, first, IN_MODIFY, "");
	expect_event(other, once, IN_MODIFY, "");
	expect_event(other, once, IN_IGNORED, "");
	same(write(log, "x", 1), 1);
	expect_event(fd, first, IN_MODIFY, "");
	expect(read(other, &byte, 1) == -1 && errno == EAGAIN);
	same(mkdir("dir/new", 0700), 0);
	expect_event(fd, second, IN_CREATE | IN_ISDIR, "new");
	unlink("link");
	expect_event(fd, third, IN_ATTRIB, "");
	expect_event(fd, third, IN_DELETE_SELF, "");
	expect_event(fd, third, IN_IGNORED, "");
}

static void unread_events(void)
{
	int fd = inotify_init(), log = must_open("log", O_WRONLY | O_CREAT), wd = watch(fd, "log", IN_MODIFY);
	if (write(log, "x", 1) != 1)
		die("write");
	pause_here();
	expect_event(fd, wd, IN_MODIFY, "");
}

static void watch_on_removed_file(void)
{
	int fd = inotify_init(), log = must_open("log", O_WRONLY | O_CREAT), wd = watch(fd, "log", IN_MODIFY);
	unlink("log");
	pause_here();
	same(write(log, "x", 1), 1);
	expect_event(fd, wd, IN_MODIFY, "");
}

static const struct check checks[] = {
	{ "paths", paths },
	{ "process_file", process_file },
	{ "grown_log", grown_log },
	{ "unchanged_log", unchanged_log },
	{ "inotify", inotify },
	{ "unread_events", unread_events },
	{ "watch_on_removed_file", watch_on_removed_file },
	{ "memfds", memfds },
	{ "memfd_held_outside", memfd_held_outside },
	{ "removed_files", removed_files },
	{ "replaced_file", replaced_file },
	{ "removed_memory", removed_memory },
	{ "removed_program", removed_program },
	{ "removed_with_another_name", removed_with_another_name },
	{ "large_removed_file", large_removed_file },
	{ "removed_file_held_outside", removed_file_held_outside },
	{ "locks", locks },
	{ "lock_wanted_outside", lock_wanted_outside },
	{ "ofd_lock_wanted_outside", ofd_lock_wanted_outside },
	{ "lease_on_mapped_file", lease_on_mapped_file },
	{ "breaking_lease", breaking_lease },
};

int main(int argc, char **argv)
{
	if (argc == 5) {
		go = atoi(argv[3]);
		result = atoi(argv[4]);
		removed_program();
		dprintf(result, "done\n");
		return 0;
	}
	return run_check(argc, argv, checks, sizeof checks / sizeof *checks);
}
