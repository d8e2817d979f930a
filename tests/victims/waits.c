/* Waits in one system call; see counters.h. A byte through the FIFO lets one call return: a child takes the bytes, and does for each what the call
 * waits for. */
#define _GNU_SOURCE
#include "counters.h"
#include <linux/aio_abi.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>

enum { OBJECT = FIRST_OWN, BIG = 600000 };

/* What the two sides share: the victim uses the first, its child the second. */
static int ends[2];
static char big[BIG];

/* Judges a call that had to move `wanted` bytes. */
static void judge_count(ssize_t count, ssize_t wanted)
{
	if (count >= 0 && count != wanted) {
		wrong(1000000 + count);
		slot[ROUNDS]++;
		return;
	}
	judge(count == wanted);
}

static void make_pair(int type)
{
	if (socketpair(AF_UNIX, type, 0, ends))
		die("socketpair");
}

static void set_time(int name)
{
	struct timeval limit = { .tv_sec = 1000 };
	if (setsockopt(ends[0], SOL_SOCKET, name, &limit, sizeof limit))
		die("setsockopt");
}

/* Receiving. */

static void send_four(void)
{
	if (write(ends[1], "four", 4) != 4)
		wrong(errno);
}

static void prepare_receive(void)
{
	make_pair(SOCK_STREAM);
	helped_by(send_four);
}

static void prepare_receive_timed(void)
{
	prepare_receive();
	set_time(SO_RCVTIMEO);
}

static void prepare_receive_low(void)
{
	int low = 6;
	prepare_receive();
	setsockopt(ends[0], SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low);
}

static void do_read(void)
{
	char bytes[64];
	errno = 0;
	judge_count(read(ends[0], bytes, sizeof bytes), 4);
}

static void do_recvfrom(void)
{
	char bytes[64];
	errno = 0;
	judge_count(recv(ends[0], bytes, sizeof bytes, 0), 4);
}

static ssize_t recvmsg_into(char *bytes, size_t size, int flags)
{
	struct iovec vector = { .iov_base = bytes, .iov_len = size };
	struct msghdr header = { .msg_iov = &vector, .msg_iovlen = 1 };
	errno = 0;
	return recvmsg(ends[0], &header, flags);
}

static void do_recvmsg(void)
{
	char bytes[64];
	judge_count(recvmsg_into(bytes, sizeof bytes, 0), 4);
}

/* Two bytes are there, and four more are waited for. */
static void judge_six(ssize_t count, const char *bytes)
{
	judge_count(count, 6);
	if (count == 6 && memcmp(bytes, "..four", 6))
		wrong(2000);
}

static void two_first(void)
{
	if (write(ends[1], "..", 2) != 2)
		wrong(errno);
	errno = 0;
}

static void do_recv_all(void)
{
	char bytes[6];
	two_first();
	judge_six(recv(ends[0], bytes, sizeof bytes, MSG_WAITALL), bytes);
}

static void do_recvmsg_all(void)
{
	char bytes[6];
	two_first();
	judge_six(recvmsg_into(bytes, sizeof bytes, MSG_WAITALL), bytes);
}

static void do_read_low(void)
{
	char bytes[6];
	two_first();
	judge_six(read(ends[0], bytes, sizeof bytes), bytes);
}

static void prepare_datagrams(void)
{
	make_pair(SOCK_DGRAM);
	helped_by(send_four);
}

static void do_recvmmsg(void)
{
	char bytes[2][8];
	struct iovec vectors[2] = { { bytes[0], 8 }, { bytes[1], 8 } };
	struct mmsghdr headers[2] = { { .msg_hdr = { .msg_iov = &vectors[0], .msg_iovlen = 1 } },
				      { .msg_hdr = { .msg_iov = &vectors[1], .msg_iovlen = 1 } } };
	two_first();
	judge_count(recvmmsg(ends[0], headers, 2, 0, NULL), 2);
	if (headers[0].msg_len != 2 || headers[1].msg_len != 4)
		wrong(3000 + headers[1].msg_len);
}

/* Connections. */

static struct sockaddr_un address = { .sun_family = AF_UNIX };
static int listener, last = -1;

static void listen_at(int backlog)
{
	strcpy(address.sun_path, "server");
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, backlog))
		die("listen");
	ends[0] = listener;
}

static void connect_once(void)
{
	if (last >= 0)
		close(last);
	last = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(last, (struct sockaddr *)&address, sizeof address))
		wrong(errno);
}

static void prepare_accept(void)
{
	listen_at(5);
	helped_by(connect_once);
}

static void prepare_accept_timed(void)
{
	prepare_accept();
	set_time(SO_RCVTIMEO);
}

static void do_accept(void)
{
	errno = 0;
	int fd = accept(listener, NULL, NULL);
	judge(fd >= 0);
	close(fd);
}

static void accept_once(void)
{
	int fd = accept(listener, NULL, NULL);
	if (fd < 0)
		wrong(errno);
	close(fd);
}

static void prepare_connect(void)
{
	listen_at(0);
	connect_once();
	helped_by(accept_once);
}

/* The queue holds the client of the round before. */
static void connect_behind(int timed)
{
	ends[0] = socket(AF_UNIX, SOCK_STREAM, 0);
	if (timed)
		set_time(SO_SNDTIMEO);
	errno = 0;
	int good = connect(ends[0], (struct sockaddr *)&address, sizeof address) == 0;
	close(last);
	last = ends[0];
	judge(good);
}

static void do_connect(void)
{
	connect_behind(0);
}

static void do_connect_timed(void)
{
	connect_behind(1);
}

/* Sending more than fits. */

static void take_big(void)
{
	static char bytes[65536];
	for (size_t got = 0; got < BIG;) {
		ssize_t some = read(ends[1], bytes, BIG - got < sizeof bytes ? BIG - got : sizeof bytes);
		if (some <= 0)
			return wrong(errno);
		if (memcmp(bytes, big + got, some))
			wrong(4000);
		got += some;
	}
}

static void prepare_send(void)
{
	make_pair(SOCK_STREAM);
	helped_by(take_big);
}

static void prepare_send_timed(void)
{
	prepare_send();
	set_time(SO_SNDTIMEO);
}

static void prepare_pipe(void)
{
	int pipes[2];
	if (pipe(pipes))
		die("pipe");
	ends[0] = pipes[1];
	ends[1] = pipes[0];
	helped_by(take_big);
}

static void do_write(void)
{
	errno = 0;
	judge_count(write(ends[0], big, BIG), BIG);
}

static void do_send(void)
{
	errno = 0;
	judge_count(send(ends[0], big, BIG, MSG_NOSIGNAL), BIG);
}

static struct iovec *parts(int count)
{
	static struct iovec vectors[8];
	for (int n = 0; n < count; n++)
		vectors[n] = (struct iovec){ big + BIG / count * n, BIG / count };
	return vectors;
}

static void do_writev_one(void)
{
	errno = 0;
	judge_count(writev(ends[0], parts(1), 1), BIG);
}

static void do_writev_two(void)
{
	errno = 0;
	judge_count(writev(ends[0], parts(2), 2), BIG);
}

static void do_writev_many(void)
{
	errno = 0;
	judge_count(writev(ends[0], parts(8), 8), BIG);
}

static void sendmsg_of(int count)
{
	struct msghdr header = { .msg_iov = parts(count), .msg_iovlen = count };
	errno = 0;
	judge_count(sendmsg(ends[0], &header, MSG_NOSIGNAL), BIG);
}

static void do_sendmsg(void)
{
	sendmsg_of(1);
}

static void do_sendmsg_two(void)
{
	sendmsg_of(2);
}

enum { MANY = 20, DATAGRAM = 16384 };

static void take_many(void)
{
	static char bytes[DATAGRAM];
	for (int n = 0; n < MANY; n++) {
		ssize_t got = recv(ends[1], bytes, sizeof bytes, 0);
		if (got != DATAGRAM || bytes[0] != n)
			return wrong(got == DATAGRAM ? 5000 + bytes[0] : errno);
	}
}

static void prepare_many(void)
{
	make_pair(SOCK_DGRAM);
	helped_by(take_many);
}

/* More datagrams than the sender's buffer takes. */
static void do_sendmmsg(void)
{
	static char bytes[MANY][DATAGRAM];
	static struct iovec vectors[MANY];
	static struct mmsghdr headers[MANY];
	for (int n = 0; n < MANY; n++) {
		bytes[n][0] = (char)n;
		vectors[n] = (struct iovec){ bytes[n], DATAGRAM };
		headers[n] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &vectors[n], .msg_iovlen = 1 } };
	}
	errno = 0;
	judge_count(sendmmsg(ends[0], headers, MANY, 0), MANY);
	for (int n = 0; n < MANY; n++)
		if (headers[n].msg_len != DATAGRAM)
			wrong(5100 + n);
}

static int file;

static void make_file(void)
{
	file = open("file", O_RDWR | O_CREAT, 0600);
	if (file < 0 || write(file, big, BIG) != BIG)
		die("file");
}

static void prepare_sendfile(void)
{
	make_file();
	prepare_send();
}

static void do_sendfile(void)
{
	lseek(file, 0, SEEK_SET);
	errno = 0;
	judge_count(sendfile(ends[0], file, NULL, BIG), BIG);
}

static void do_sendfile_at(void)
{
	off_t at = 0;
	errno = 0;
	judge_count(sendfile(ends[0], file, &at, BIG), BIG);
	if (at != BIG)
		wrong(6000);
}

static void take_datagrams(void)
{
	char bytes[8];
	while (recv(ends[1], bytes, sizeof bytes, MSG_DONTWAIT) > 0)
		;
}

static void prepare_full_datagrams(void)
{
	make_pair(SOCK_DGRAM);
	helped_by(take_datagrams);
}

static void do_send_datagram(void)
{
	while (send(ends[0], "full", 4, MSG_DONTWAIT) == 4)
		;
	errno = 0;
	judge_count(send(ends[0], "next", 4, 0), 4);
}

/* Pipes. */

static int pipes[2][2];

static void make_pipes(void)
{
	if (pipe(pipes[0]) || pipe(pipes[1]))
		die("pipe");
}

static void fill_first(void)
{
	if (write(pipes[0][1], "four", 4) != 4)
		wrong(errno);
}

static void prepare_pipes(void)
{
	make_pipes();
	helped_by(fill_first);
}

static void empty(int fd, size_t size)
{
	char bytes[64];
	while (size) {
		ssize_t some = read(fd, bytes, size < sizeof bytes ? size : sizeof bytes);
		if (some <= 0)
			return wrong(errno);
		size -= some;
	}
}

static void do_splice(void)
{
	errno = 0;
	judge_count(splice(pipes[0][0], NULL, pipes[1][1], NULL, 64, 0), 4);
	empty(pipes[1][0], 4);
}

static void do_tee(void)
{
	errno = 0;
	judge_count(tee(pipes[0][0], pipes[1][1], 64, 0), 4);
	empty(pipes[0][0], 4);
	empty(pipes[1][0], 4);
}

static void empty_first(void)
{
	empty(pipes[0][0], 16);
}

static void prepare_vmsplice(void)
{
	make_pipes();
	fcntl(pipes[0][1], F_SETPIPE_SZ, 4096);
	helped_by(empty_first);
}

static void do_vmsplice(void)
{
	static char bytes[16];
	struct iovec vector = { bytes, sizeof bytes };
	while (vmsplice(pipes[0][1], &vector, 1, SPLICE_F_NONBLOCK) == sizeof bytes)
		;
	errno = 0;
	judge_count(vmsplice(pipes[0][1], &vector, 1, 0), sizeof bytes);
}

static void open_gate(void)
{
	int fd = open("gate", O_WRONLY);
	if (fd < 0)
		wrong(errno);
	close(fd);
}

static void prepare_gate(void)
{
	if (mkfifo("gate", 0600))
		die("mkfifo");
	helped_by(open_gate);
}

static void do_open(void)
{
	char byte;
	errno = 0;
	int fd = open("gate", O_RDONLY), error = errno;
	/* The other side has let go, so that it opens the next time anew. */
	while (read(fd, &byte, 1) > 0)
		;
	close(fd);
	errno = error;
	judge(fd >= 0);
}

/* System V. */

static int queue;
static struct { long type; char text[8]; } letter = { 1, "letter" };

static void send_letter(void)
{
	if (msgsnd(queue, &letter, 8, 0))
		wrong(errno);
}

/* Whoever runs us removes it. */
static void keep(int id)
{
	queue = id;
	slot[OBJECT] = id;
}

static void prepare_queue(void)
{
	keep(msgget(IPC_PRIVATE, 0600));
	helped_by(send_letter);
}

static void do_msgrcv(void)
{
	struct { long type; char text[8]; } got;
	errno = 0;
	judge_count(msgrcv(queue, &got, 8, 0, 0), 8);
}

static void take_letter(void)
{
	struct { long type; char text[8]; } got;
	if (msgrcv(queue, &got, 8, 0, 0) != 8)
		wrong(errno);
}

static void prepare_full_queue(void)
{
	keep(msgget(IPC_PRIVATE, 0600));
	while (!msgsnd(queue, &letter, 8, IPC_NOWAIT))
		;
	helped_by(take_letter);
}

static void do_msgsnd(void)
{
	errno = 0;
	judge(msgsnd(queue, &letter, 8, 0) == 0);
}

static void raise_semaphore(void)
{
	struct sembuf up = { .sem_op = 1 };
	if (semop(queue, &up, 1))
		wrong(errno);
}

static void prepare_semaphore(void)
{
	keep(semget(IPC_PRIVATE, 1, 0600));
	helped_by(raise_semaphore);
}

static void do_semop(void)
{
	struct sembuf down = { .sem_op = -1 };
	errno = 0;
	judge(semop(queue, &down, 1) == 0);
}

static void do_semtimedop(void)
{
	struct sembuf down = { .sem_op = -1 };
	struct timespec limit = { .tv_sec = 1000 };
	errno = 0;
	judge(semtimedop(queue, &down, 1, &limit) == 0);
}

/* Locks: the child has the lock, lets it go for a round, and takes it again when the victim has had it. */

static int (*lock)(int fd, int take);

static int lock_flock(int fd, int take)
{
	return flock(fd, take ? LOCK_EX : LOCK_UN);
}

static int lock_with(int fd, int command, int take)
{
	struct flock lock = { .l_type = take ? F_WRLCK : F_UNLCK };
	return fcntl(fd, command, &lock);
}

static int lock_posix(int fd, int take)
{
	return lock_with(fd, F_SETLKW, take);
}

static int lock_ofd(int fd, int take)
{
	return lock_with(fd, F_OFD_SETLKW, take);
}

static void pass(int to)
{
	if (write(to, ".", 1) != 1)
		wrong(errno);
}

static void await(int from)
{
	char byte;
	while (read(from, &byte, 1) < 0 && errno == EINTR)
		;
}

static void open_lock(void)
{
	file = open("lock", O_RDWR | O_CREAT, 0600);
	if (file < 0)
		die("lock");
}

static void lend_lock(void)
{
	lock(file, 0);
	await(ends[1]);
	lock(file, 1);
	pass(ends[1]);
}

static void prepare_lock(void)
{
	make_pair(SOCK_STREAM);
	if (!fork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		open_lock();
		lock(file, 1);
		pass(ends[1]);
		for (;;) {
			char byte;
			if (read(in, &byte, 1) == 1)
				lend_lock();
		}
	}
	open_lock();
	await(ends[0]);
}

static void prepare_flock(void)
{
	lock = lock_flock;
	prepare_lock();
}

static void prepare_setlkw(void)
{
	lock = lock_posix;
	prepare_lock();
}

static void prepare_ofd_setlkw(void)
{
	lock = lock_ofd;
	prepare_lock();
}

static void do_lock(void)
{
	errno = 0;
	int good = lock(file, 1) == 0;
	int error = errno;
	lock(file, 0);
	pass(ends[0]);
	await(ends[0]);
	errno = error;
	judge(good);
}

/* Descriptors that count. */

static void add_one(void)
{
	uint64_t one = 1;
	if (write(file, &one, sizeof one) != sizeof one)
		wrong(errno);
}

static void prepare_eventfd(void)
{
	file = eventfd(0, 0);
	helped_by(add_one);
}

static void do_eventfd_read(void)
{
	uint64_t value = 0;
	errno = 0;
	judge_count(read(file, &value, sizeof value), sizeof value);
}

static void take_all(void)
{
	uint64_t value;
	if (read(file, &value, sizeof value) != sizeof value)
		wrong(errno);
}

static void prepare_full_eventfd(void)
{
	file = eventfd(0, 0);
	helped_by(take_all);
}

static void do_eventfd_write(void)
{
	uint64_t most = UINT64_MAX - 1, one = 1;
	uint64_t now = slot[ROUNDS] ? most - one : most;
	if (write(file, &now, sizeof now) != sizeof now)
		wrong(errno);
	errno = 0;
	judge_count(write(file, &one, sizeof one), sizeof one);
}

static void set_timer(void)
{
	struct itimerspec soon = { .it_value = { .tv_nsec = 1000000 } };
	if (timerfd_settime(file, 0, &soon, NULL))
		wrong(errno);
}

static void prepare_timerfd(void)
{
	file = timerfd_create(CLOCK_MONOTONIC, 0);
	helped_by(set_timer);
}

static pid_t victim;

static void send_signal(void)
{
	kill(victim, SIGUSR1);
}

static void prepare_signalfd(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	victim = getpid();
	sigprocmask(SIG_BLOCK, &set, NULL);
	file = signalfd(-1, &set, 0);
	helped_by(send_signal);
}

static void do_signalfd(void)
{
	struct signalfd_siginfo info;
	errno = 0;
	judge_count(read(file, &info, sizeof info), sizeof info);
}

static volatile sig_atomic_t handled;

static void handler(int signal)
{
	(void)signal;
	handled++;
}

static void prepare_pause(void)
{
	struct sigaction action = { .sa_handler = handler };
	victim = getpid();
	sigaction(SIGUSR1, &action, NULL);
	helped_by(send_signal);
}

static void do_pause(void)
{
	int before = handled;
	pause();
	if (handled == before + 1)
		slot[ROUNDS]++;
	else
		slot[EINTRS]++;
}

static void touch(void)
{
	int fd = open("watched/touched", O_WRONLY | O_CREAT, 0600);
	close(fd);
	unlink("watched/touched");
}

static void prepare_inotify(void)
{
	file = inotify_init();
	mkdir("watched", 0700);
	if (inotify_add_watch(file, "watched", IN_DELETE) < 0)
		die("inotify");
	helped_by(touch);
}

static void do_inotify(void)
{
	char events[4096];
	errno = 0;
	judge(read(file, events, sizeof events) > 0);
}

/* The child ends when its round's byte has come. */
static void do_waitid(void)
{
	static pid_t child;
	siginfo_t info = { 0 };
	if (!child && !(child = fork())) {
		char byte;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(read(in, &byte, 1) == 1 ? 7 : 8);
	}
	errno = 0;
	int good = waitid(P_PID, child, &info, WEXITED) == 0;
	if (good)
		child = 0;
	judge(good && info.si_status == 7);
}

static aio_context_t context;

static void prepare_aio(void)
{
	if (syscall(SYS_io_setup, 4, &context))
		die("io_setup");
	prepare_eventfd();
}

/* A poll for input of the eventfd. */
static void do_io_getevents(void)
{
	struct iocb request = { .aio_lio_opcode = 5, .aio_fildes = file, .aio_buf = 1 }, *requests[] = { &request };
	struct io_event event;
	static int submitted;
	if (!submitted && syscall(SYS_io_submit, context, 1, requests) != 1)
		wrong(errno);
	submitted = 1;
	errno = 0;
	int good = syscall(SYS_io_getevents, context, 1, 1, &event, NULL) == 1;
	if (good) {
		submitted = 0;
		take_all();
	}
	judge(good);
}

/* Large transfers that wait for nobody. */

enum { LARGE = 4 << 20 };
static char large[LARGE];

static void do_getrandom(void)
{
	errno = 0;
	judge_count(getrandom(large, LARGE, 0), LARGE);
}

static void prepare_urandom(void)
{
	file = open("/dev/urandom", O_RDONLY);
}

static void prepare_zero(void)
{
	file = open("/dev/zero", O_RDONLY);
}

static void do_read_large(void)
{
	errno = 0;
	judge_count(read(file, large, LARGE), LARGE);
}

static int other;

static void prepare_copy(void)
{
	make_file();
	other = open("other", O_RDWR | O_CREAT, 0600);
	if (other < 0)
		die("other");
}

static void do_copy_file_range(void)
{
	off_t from = 0, to = 0;
	errno = 0;
	judge_count(copy_file_range(file, &from, other, &to, BIG, 0), BIG);
}

static void do_sendfile_file(void)
{
	off_t from = 0;
	lseek(other, 0, SEEK_SET);
	errno = 0;
	judge_count(sendfile(other, file, &from, BIG), BIG);
}

static void do_write_file(void)
{
	errno = 0;
	judge_count(pwrite(file, big, BIG, 0), BIG);
}

static void do_read_file(void)
{
	errno = 0;
	judge_count(pread(file, large, BIG, 0), BIG);
}

static const struct mode modes[] = {
	{ "read_socket", prepare_receive, do_read },
	{ "read_timed", prepare_receive_timed, do_read },
	{ "read_low", prepare_receive_low, do_read_low },
	{ "recvfrom", prepare_receive, do_recvfrom },
	{ "recvfrom_timed", prepare_receive_timed, do_recvfrom },
	{ "recvfrom_all", prepare_receive, do_recv_all },
	{ "recvmsg", prepare_receive, do_recvmsg },
	{ "recvmsg_timed", prepare_receive_timed, do_recvmsg },
	{ "recvmsg_all", prepare_receive, do_recvmsg_all },
	{ "recvmmsg", prepare_datagrams, do_recvmmsg },
	{ "accept", prepare_accept, do_accept },
	{ "accept_timed", prepare_accept_timed, do_accept },
	{ "connect", prepare_connect, do_connect },
	{ "connect_timed", prepare_connect, do_connect_timed },
	{ "write_socket", prepare_send, do_write },
	{ "write_timed", prepare_send_timed, do_write },
	{ "write_pipe", prepare_pipe, do_write },
	{ "writev_one", prepare_pipe, do_writev_one },
	{ "writev_two", prepare_pipe, do_writev_two },
	{ "writev_many", prepare_send, do_writev_many },
	{ "sendto", prepare_send, do_send },
	{ "sendmsg", prepare_send, do_sendmsg },
	{ "sendmsg_two", prepare_send, do_sendmsg_two },
	{ "sendmmsg", prepare_many, do_sendmmsg },
	{ "sendfile", prepare_sendfile, do_sendfile },
	{ "sendfile_at", prepare_sendfile, do_sendfile_at },
	{ "send_datagram", prepare_full_datagrams, do_send_datagram },
	{ "splice", prepare_pipes, do_splice },
	{ "tee", prepare_pipes, do_tee },
	{ "vmsplice", prepare_vmsplice, do_vmsplice },
	{ "open_fifo", prepare_gate, do_open },
	{ "msgrcv", prepare_queue, do_msgrcv },
	{ "msgsnd", prepare_full_queue, do_msgsnd },
	{ "semop", prepare_semaphore, do_semop },
	{ "semtimedop", prepare_semaphore, do_semtimedop },
	{ "flock", prepare_flock, do_lock },
	{ "setlkw", prepare_setlkw, do_lock },
	{ "ofd_setlkw", prepare_ofd_setlkw, do_lock },
	{ "eventfd_read", prepare_eventfd, do_eventfd_read },
	{ "eventfd_write", prepare_full_eventfd, do_eventfd_write },
	{ "timerfd", prepare_timerfd, do_eventfd_read },
	{ "signalfd", prepare_signalfd, do_signalfd },
	{ "pause_call", prepare_pause, do_pause },
	{ "inotify", prepare_inotify, do_inotify },
	{ "waitid", NULL, do_waitid },
	{ "io_getevents", prepare_aio, do_io_getevents },
	{ "getrandom", NULL, do_getrandom },
	{ "read_urandom", prepare_urandom, do_read_large },
	{ "read_zero", prepare_zero, do_read_large },
	{ "copy_file_range", prepare_copy, do_copy_file_range },
	{ "sendfile_file", prepare_copy, do_sendfile_file },
	{ "write_file", prepare_copy, do_write_file },
	{ "read_file", prepare_copy, do_read_file },
};

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < BIG; i++)
		big[i] = (char)(i * 7 + i / 251);
	return run_mode(argc, argv, modes, sizeof modes / sizeof *modes);
}
