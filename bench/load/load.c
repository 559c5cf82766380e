// load drives an echo server over loopback and checks every byte that comes back.
//
//   load -a 127.0.0.1 -p PORT -c CONNS -s BYTES -d DEPTH -t SECONDS [-w WARMUP] [-i IDLE] [-m echo|connect] [-n CPU]
//
// One thread, epoll, level-triggered. In mode echo each of CONNS connections keeps DEPTH requests of BYTES bytes under
// way. In mode connect each connects, does one round trip, closes and starts again. IDLE further connections do one
// round trip and then stay silent. Requests and latencies are counted after WARMUP seconds, when the line "warm" is
// printed; one line of JSON is printed at the end. It ends by itself, and with status 1 when a byte was wrong, a
// connection was lost, or nothing came back for 10 s.
//
// With -h SECONDS it only connects IDLE connections, does the round trips, prints "warm" and waits.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct conn {
	int fd;
	uint32_t id;
	uint64_t sent, got; // bytes
	uint64_t *start;    // when each request under way began
	uint32_t head, count;
	int out; // waits for room
};

static const char *host = "127.0.0.1";
static int port, conns = 64, size = 64, depth = 1, idle, churn, hold;
static double seconds = 3, warmup = 1;
static struct conn *all;
static int ep;
static char *outbuf, *inbuf;
static uint64_t done, total, *hist;
enum { BUCKETS = 64 * 64 };

static uint64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void die(const char *what) {
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

// Latencies are kept in buckets of a sixty-fourth of a power of two.
static void record(uint64_t ns) {
	int e = ns < 64 ? 0 : 63 - __builtin_clzll(ns) - 5;
	uint64_t i = (uint64_t)e * 64 + (e ? (ns >> (e - 1)) - 64 : ns);
	hist[i < BUCKETS ? i : BUCKETS - 1]++;
}

static double quantile(double q) {
	uint64_t want = q * total, sum = 0;
	for (int i = 0; i < BUCKETS; i++) {
		sum += hist[i];
		if (sum > want) {
			int e = i / 64, m = i % 64;
			return e ? (double)((uint64_t)(m + 64) << (e - 1)) / 1e3 : m / 1e3;
		}
	}
	return 0;
}

// The stream that a connection sends is its own and never repeats within a megabyte or so.
static inline unsigned char byteat(const struct conn *c, uint64_t pos) {
	uint32_t x = (uint32_t)(pos >> 3) * 2654435761u + c->id * 40503u;
	return x >> ((pos & 7) * 3);
}

static int dial(uint32_t id) {
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0) die("socket");
	int one = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
	if (inet_pton(AF_INET, host, &a.sin_addr) != 1) die("address");
	// Several source addresses: one has too few ports for connections in TIME_WAIT.
	struct sockaddr_in s = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + id % 200)};
	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
	if (bind(fd, (void *)&s, sizeof s) < 0) die("bind");
	if (connect(fd, (void *)&a, sizeof a) < 0 && errno != EINPROGRESS) die("connect");
	return fd;
}

static void want(struct conn *c, int out, int op) {
	struct epoll_event e = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c};
	if (epoll_ctl(ep, op, c->fd, &e) < 0) die("epoll_ctl");
	c->out = out;
}

// Sends what is left of the requests that have begun.
static void push(struct conn *c, uint64_t end) {
	while (c->sent < end) {
		uint64_t n = end - c->sent;
		for (uint64_t i = 0; i < n; i++) outbuf[i] = byteat(c, c->sent + i);
		ssize_t w = send(c->fd, outbuf, n, MSG_NOSIGNAL);
		if (w < 0) {
			if (errno != EAGAIN) die("send");
			if (!c->out) want(c, 1, EPOLL_CTL_MOD);
			return;
		}
		c->sent += w;
	}
	if (c->out) want(c, 0, EPOLL_CTL_MOD);
}

static void begin(struct conn *c, int n) {
	uint64_t t = now();
	for (int i = 0; i < n; i++) c->start[(c->head + c->count++) % depth] = t;
	push(c, c->got / size * size + (uint64_t)c->count * size);
}

static void restart(struct conn *c) {
	static uint32_t next;
	close(c->fd);
	c->fd = dial(next++);
	c->sent = c->got = c->head = c->count = 0;
	want(c, 1, EPOLL_CTL_ADD);
}

static void readable(struct conn *c, int counted) {
	for (;;) {
		ssize_t r = recv(c->fd, inbuf, 256 << 10, 0);
		if (r < 0) {
			if (errno == EAGAIN) return;
			die("recv");
		}
		if (r == 0) {
			errno = 0;
			die("server closed");
		}
		for (ssize_t i = 0; i < r; i++)
			if ((unsigned char)inbuf[i] != byteat(c, c->got + i)) {
				errno = 0;
				die("wrong byte");
			}
		uint64_t before = c->got / size;
		c->got += r;
		int n = c->got / size - before;
		if (n > 0) {
			uint64_t t = now();
			for (int i = 0; i < n; i++) {
				if (counted) record(t - c->start[c->head]), total++;
				c->head = (c->head + 1) % depth;
				c->count--;
			}
			done += n;
			if (churn) {
				restart(c);
				return;
			}
			if (c->id < (uint32_t)conns) begin(c, n);
		}
		if (r < (256 << 10)) return;
	}
}

int main(int argc, char **argv) {
	int o, cpu = -1;
	while ((o = getopt(argc, argv, "a:p:c:s:d:t:w:i:m:n:h:")) != -1) switch (o) {
		case 'a': host = optarg; break;
		case 'p': port = atoi(optarg); break;
		case 'c': conns = atoi(optarg); break;
		case 's': size = atoi(optarg); break;
		case 'd': depth = atoi(optarg); break;
		case 't': seconds = atof(optarg); break;
		case 'w': warmup = atof(optarg); break;
		case 'i': idle = atoi(optarg); break;
		case 'm': churn = !strcmp(optarg, "connect"); break;
		case 'n': cpu = atoi(optarg); break;
		case 'h': hold = 1, conns = 0, seconds = atof(optarg); break;
		default: return 2;
		}
	if (cpu >= 0) {
		cpu_set_t set;
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		sched_setaffinity(0, sizeof set, &set);
	}
	struct rlimit rl = {20000, 20000};
	setrlimit(RLIMIT_NOFILE, &rl);
	all = calloc(conns + idle, sizeof *all);
	hist = calloc(BUCKETS, sizeof *hist);
	outbuf = malloc((size_t)size * depth);
	inbuf = malloc(256 << 10);
	if ((ep = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll_create1");

	// The idle ones first, some hundred at a time: the backlog is finite.
	struct epoll_event ev[512];
	int made = 0;
	for (int i = 0; i < conns + idle; i++) {
		int k = i < idle ? conns + i : i - idle;
		struct conn *c = &all[k];
		c->id = k;
		c->start = malloc(sizeof(uint64_t) * depth);
		c->fd = dial(k);
		want(c, 1, EPOLL_CTL_ADD);
		made++;
		if (i < idle && (made == 500 || i == idle - 1)) {
			uint64_t target = done + made, limit = now() + 30000000000ull;
			while (done < target) {
				if (now() > limit) { errno = ETIMEDOUT; die("connecting"); }
				int n = epoll_wait(ep, ev, 512, 100);
				for (int j = 0; j < n; j++) {
					struct conn *d = ev[j].data.ptr;
					if ((ev[j].events & EPOLLOUT) && !d->count) begin(d, 1);
					else if (ev[j].events & EPOLLOUT) push(d, size);
					if (ev[j].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) readable(d, 0);
				}
			}
			made = 0;
		}
	}
	if (hold) {
		printf("warm\n");
		fflush(stdout);
		usleep(seconds * 1e6);
		return 0;
	}
	uint64_t t0 = now(), tw = t0 + warmup * 1e9, end = tw + seconds * 1e9, last = t0, seen = 0, from = 0;
	int warm = 0;
	for (;;) {
		uint64_t t = now();
		if (!warm && t >= tw) {
			warm = 1, from = t;
			printf("warm\n");
			fflush(stdout);
		}
		if (t >= end) break;
		if (done != seen) seen = done, last = t;
		if (t - last > 10000000000ull) { errno = ETIMEDOUT; die("stalled"); }
		int n = epoll_wait(ep, ev, 512, 100);
		for (int j = 0; j < n; j++) {
			struct conn *c = ev[j].data.ptr;
			if (ev[j].events & EPOLLOUT) {
				if (!c->count && c->id < (uint32_t)conns) begin(c, churn ? 1 : depth);
				else push(c, c->got / size * size + (uint64_t)c->count * size);
			}
			if (ev[j].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) readable(c, warm);
		}
	}
	double took = (now() - from) / 1e9;
	printf("{\"requests\":%lu,\"seconds\":%.6f,\"p50_us\":%.3f,\"p99_us\":%.3f,\"p999_us\":%.3f}\n",
	       (unsigned long)total, took, quantile(.5), quantile(.99), quantile(.999));
	return 0;
}
