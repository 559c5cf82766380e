// cserver is the floor: an echo server that does nothing but epoll, read and write.
//
//   cserver PORT lt|et|group THREADS
//
// With group it greets every peer with a byte and sends what one of them says to all, a send each; with one thread only.
// Each thread has its own epoll instance and its own listening socket (SO_REUSEPORT with more than one).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static int port, et, threads, group;

static void die(const char *what) {
	perror(what);
	exit(1);
}

// What the peer has not taken yet; only while it is slow.
struct rest {
	char *p;
	size_t len;
};
static struct rest rests[65536];

static int members[65536], joined; // of the group

static void serve(int fd, char *buf, size_t size, unsigned events) {
	struct rest *r = &rests[fd];
	while (r->len) {
		ssize_t w = send(fd, r->p, r->len, MSG_NOSIGNAL);
		if (w < 0) {
			if (errno == EAGAIN) return;
			goto gone;
		}
		memmove(r->p, r->p + w, r->len - w);
		if (!(r->len -= w)) free(r->p), r->p = NULL;
	}
	if (!(events & ~EPOLLOUT)) return;
	for (;;) {
		ssize_t n = recv(fd, buf, size, 0);
		if (n < 0) {
			if (errno == EAGAIN) return;
			goto gone;
		}
		if (n == 0) goto gone;
		if (group) {
			// A peer that does not read is not this program's subject: the load generator reads.
			for (int i = 0; i < joined; i++)
				if (send(members[i], buf, n, MSG_NOSIGNAL) != n) perror("send");
			return;
		}
		for (ssize_t off = 0; off < n;) {
			ssize_t w = send(fd, buf + off, n - off, MSG_NOSIGNAL);
			if (w < 0) {
				if (errno != EAGAIN) goto gone;
				r->len = n - off;
				r->p = malloc(r->len);
				memcpy(r->p, buf + off, r->len);
				return;
			}
			off += w;
		}
		if ((size_t)n < size && !(events & EPOLLRDHUP)) return;
	}
gone:
	free(r->p);
	memset(r, 0, sizeof *r);
	for (int i = 0; group && i < joined; i++)
		if (members[i] == fd) members[i] = members[--joined];
	close(fd);
}

static void *loop(void *arg) {
	int one = 1, ls = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), ep = epoll_create1(EPOLL_CLOEXEC);
	(void)arg;
	if (ls < 0 || ep < 0) die("socket");
	setsockopt(ls, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (threads > 1) setsockopt(ls, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
	setsockopt(ls, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	if (bind(ls, (void *)&a, sizeof a) < 0 || listen(ls, 4096) < 0) die("listen");
	struct epoll_event e = {.events = EPOLLIN, .data.fd = ls};
	epoll_ctl(ep, EPOLL_CTL_ADD, ls, &e);
	size_t size = 64 << 10;
	char *buf = malloc(size);
	struct epoll_event ev[256];
	for (;;) {
		int n = epoll_wait(ep, ev, 256, -1);
		for (int i = 0; i < n; i++) {
			int fd = ev[i].data.fd;
			if (fd != ls) {
				serve(fd, buf, size, ev[i].events);
				if (!et) {
					struct epoll_event m = {.events = EPOLLIN | EPOLLRDHUP | (rests[fd].len ? EPOLLOUT : 0), .data.fd = fd};
					static __thread char waits[65536];
					if (waits[fd] != !!rests[fd].len) waits[fd] = !!rests[fd].len, epoll_ctl(ep, EPOLL_CTL_MOD, fd, &m);
				}
				continue;
			}
			while ((fd = accept4(ls, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
				struct epoll_event m = {.events = EPOLLIN | EPOLLRDHUP | (et ? EPOLLOUT | EPOLLET : 0), .data.fd = fd};
				if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &m) < 0) close(fd);
				else if (group) members[joined++] = fd, send(fd, "j", 1, MSG_NOSIGNAL);
			}
		}
	}
	return NULL;
}

int main(int argc, char **argv) {
	if (argc != 4) return 2;
	port = atoi(argv[1]), group = !strcmp(argv[2], "group"), et = group || !strcmp(argv[2], "et"), threads = atoi(argv[3]);
	struct rlimit rl = {20000, 20000};
	setrlimit(RLIMIT_NOFILE, &rl);
	for (int i = 1; i < threads; i++) {
		pthread_t t;
		pthread_create(&t, NULL, loop, NULL);
	}
	loop(NULL);
}
