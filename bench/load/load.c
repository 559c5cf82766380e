// load drives an echo server over loopback and checks every byte that comes back.
//
//   load -p PORT [-a 127.0.0.1] [-c CONNS] [-s BYTES] [-d DEPTH] [-i IDLE] [-m echo|connect|group]
//        [-t SECONDS] [-w WARMUP] [-h SECONDS] [-x] [-k] [-n CPU] [-g MICROSECONDS] [-z OCTET]
//
// One thread, epoll, edge-triggered. Every connection begins with one round trip. Then, in mode echo, each of CONNS
// connections keeps DEPTH requests of BYTES bytes under way, and IDLE further ones stay silent. In mode connect each
// connects, does one round trip, closes and starts again. In mode group the server greets every connection with a byte
// in place of the round trip; then the first connection sends BYTES bytes at a time, which the server writes to all.
//
// Requests and latencies are counted after WARMUP seconds, when the line "warm" is printed; one line of JSON is printed
// at the end. It ends by itself, and with status 1 when a byte was wrong, a connection was lost, or nothing came back for
// 10 s. With -h it only makes the connections, prints "warm", and waits. With -x it prints "ready" when it has connected
// and waits for a byte on standard input, so that somebody can count what happens from then on; the requests are all that
// were made, answered to the last. With -k it waits for such a byte behind the JSON, so that closing is not counted.
// -g is a pause before each request, for one connection.
// -z is the third octet of the addresses that it connects from, for servers that treat some peers differently.
//
// It must not be what limits a measurement, so its own work for a request is one send, one recv, one memcmp and the
// time of sending. What a connection sends is one ring of random bytes, from a place of its own, straight from memory.
// The ring's length is a prime: what arrives shifted, doubled, left out or swapped between connections differs. The time
// of receipt is taken once for all that one epoll_wait reports, since that is when they had arrived: a latency includes
// what the client needed to learn of the answer, and none of what it did with those before it in the same batch.
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

enum {
	RING = 262147, // bytes, a prime
	INBUF = 128 << 10,
	BATCH = 512,
	BUCKETS = 64 * 64,
	DIALS = 256, // connections made at a time: the backlog is finite
};

struct conn {
	int fd;
	uint32_t id;
	uint32_t out, in;  // places in the ring: of the next byte to send, to be received
	uint64_t left;     // bytes of requests begun and not yet sent
	uint64_t got;      // bytes of the oldest request under way that have arrived
	uint64_t *start;   // when each request under way began
	uint32_t head, count;
	int up; // has connected
};

static const char *host = "127.0.0.1";
static int port, conns = 64, size = 64, depth = 1, idle, hold, octet, gap;
static enum { ECHO, CONNECT, GROUP } mode;
static double seconds = 3, warmup = 1;
static struct conn *all;
static int ep, connecting, counted, ending, alive;
static unsigned char *ring, *inbuf;
static uint64_t done, total, late, worst, *hist;

static uint64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void die(const char *what) {
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void say(const char *line) {
	puts(line);
	fflush(stdout);
}

// Latencies are kept in buckets of a sixty-fourth of a power of two.
static void record(uint64_t ns) {
	int e = ns < 64 ? 0 : 63 - __builtin_clzll(ns) - 5;
	uint64_t i = (uint64_t)e * 64 + (e ? (ns >> (e - 1)) - 64 : ns);
	hist[i < BUCKETS ? i : BUCKETS - 1]++;
	late += ns > 2000000;
	if (ns > worst) worst = ns;
	total++;
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

static void dial(struct conn *c) {
	static uint32_t next; // several source addresses: one has too few ports for connections in TIME_WAIT
	int one = 1;
	if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0) die("socket");
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
	if (inet_pton(AF_INET, host, &a.sin_addr) != 1) die("address");
	struct sockaddr_in s = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + (octet << 8) + next++ % 200)};
	setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
	if (bind(c->fd, (void *)&s, sizeof s) < 0) die("bind");
	if (connect(c->fd, (void *)&a, sizeof a) < 0 && errno != EINPROGRESS) die("connect");
	// Once and for all: edges tell when there is input, and when there is room again.
	struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
	if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e) < 0) die("epoll_ctl");
	c->out = c->in = (c->id * 7919ull) % RING;
	c->left = c->got = c->head = c->count = c->up = 0;
}

// Sends what is left of the requests that have begun. The ring's tail is long enough for a request at any place.
static void push(struct conn *c) {
	while (c->left > 0) {
		ssize_t w = send(c->fd, ring + c->out, c->left, MSG_NOSIGNAL);
		if (w < 0) {
			if (errno != EAGAIN) die("send");
			return;
		}
		c->left -= w;
		c->out = (c->out + w) % RING;
	}
}

static void begin(struct conn *c, int n) {
	if (gap) usleep(gap);
	uint64_t t = now();
	for (int i = 0; i < n; i++) {
		uint32_t k = c->head + c->count++;
		c->start[k < (uint32_t)depth ? k : k - depth] = t;
	}
	c->left += (uint64_t)n * size;
	push(c);
}

static void readable(struct conn *c, uint64_t t, int hung) {
	for (;;) {
		ssize_t r = recv(c->fd, inbuf, INBUF, 0);
		if (r < 0) {
			if (errno == EAGAIN) return;
			die("recv");
		}
		if (r == 0) errno = 0, die("server closed");
		int greeting = mode == GROUP && connecting;
		if (greeting && r == 1) {
			done++;
			return;
		}
		if (memcmp(inbuf, ring + c->in, r)) errno = 0, die("wrong byte");
		c->in = (c->in + r) % RING;
		c->got += r;
		int n = 0;
		for (; c->got >= (uint64_t)size; n++) c->got -= size;
		if (n > 0 && mode == GROUP) {
			done += n; // what all have received counts, see main
		} else if (n > 0) {
			if ((uint32_t)n > c->count) errno = 0, die("answer to nothing");
			for (int i = 0; i < n; i++) {
				uint64_t start = c->start[c->head];
				if (t < start) t = now(); // it was begun since, and has its answer already
				if (counted) record(t - start);
				if (++c->head == (uint32_t)depth) c->head = 0;
				c->count--;
			}
			done += n;
			if (!connecting && mode == CONNECT) {
				close(c->fd);
				if (ending) alive--;
				else dial(c);
				return;
			}
			if (!connecting && !ending) begin(c, n);
			else if (ending && !c->count) alive--;
		}
		if (r < INBUF && !hung) return; // drained: a later edge tells of more
	}
}

static void poll(void) {
	static struct epoll_event ev[BATCH];
	int n = epoll_wait(ep, ev, BATCH, 100);
	uint64_t t = now();
	for (int j = 0; j < n; j++) {
		struct conn *c = ev[j].data.ptr;
		unsigned bits = ev[j].events;
		if (bits & EPOLLOUT) {
			if (!c->up) {
				c->up = 1;
				if (mode != GROUP) begin(c, 1);
			} else {
				push(c);
			}
		}
		if (bits & ~EPOLLOUT) readable(c, t, bits & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
	}
}

static void wait_for_byte(void) {
	char b;
	if (read(0, &b, 1) < 0) die("standard input");
}

int main(int argc, char **argv) {
	int o, cpu = -1, handshake = 0, keep = 0;
	while ((o = getopt(argc, argv, "a:p:c:s:d:t:w:i:m:n:h:xkg:z:")) != -1) switch (o) {
		case 'a': host = optarg; break;
		case 'p': port = atoi(optarg); break;
		case 'c': conns = atoi(optarg); break;
		case 's': size = atoi(optarg); break;
		case 'd': depth = atoi(optarg); break;
		case 't': seconds = atof(optarg); break;
		case 'w': warmup = atof(optarg); break;
		case 'i': idle = atoi(optarg); break;
		case 'm': mode = !strcmp(optarg, "connect") ? CONNECT : !strcmp(optarg, "group") ? GROUP : ECHO; break;
		case 'n': cpu = atoi(optarg); break;
		case 'h': hold = 1, conns = 0, seconds = atof(optarg); break;
		case 'x': handshake = 1; break;
		case 'k': keep = 1; break;
		case 'g': gap = atoi(optarg); break;
		case 'z': octet = atoi(optarg); break;
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
	size_t tail = (size_t)size * depth > INBUF ? (size_t)size * depth : INBUF;
	all = calloc(conns + idle, sizeof *all);
	hist = calloc(BUCKETS, sizeof *hist);
	inbuf = malloc(INBUF);
	ring = malloc(RING + tail);
	uint64_t x = 88172645463325252ull;
	for (size_t i = 0; i < RING + tail; i++) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		ring[i] = i < RING ? x >> 32 : ring[i - RING];
	}
	if ((ep = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll_create1");

	connecting = 1;
	for (int i = 0; i < conns + idle; i++) {
		struct conn *c = &all[i];
		c->id = i;
		c->start = malloc(sizeof(uint64_t) * depth);
		dial(c);
		if ((i + 1) % DIALS != 0 && i != conns + idle - 1) continue;
		for (uint64_t limit = now() + 30000000000ull; done < (uint64_t)i + 1; poll())
			if (now() > limit) errno = ETIMEDOUT, die("connecting");
	}
	connecting = 0, done = 0;
	if (hold) {
		say("warm");
		usleep(seconds * 1e6);
		return 0;
	}
	if (handshake) say("ready"), wait_for_byte();

	uint64_t t0 = now(), tw = t0 + warmup * 1e9, end = tw + seconds * 1e9, last = t0, seen = 0, from = 0, sent = 0;
	for (int i = 0; i < conns && mode != GROUP; i++) {
		if (mode != CONNECT) {
			begin(&all[i], depth);
			continue;
		}
		close(all[i].fd);
		dial(&all[i]);
	}
	for (;;) {
		uint64_t t = now();
		if (!counted && t >= tw) {
			counted = 1, from = t;
			say("warm");
		}
		if (t >= end) break;
		if (done != seen) seen = done, last = t;
		if (t - last > 10000000000ull) errno = ETIMEDOUT, die("stalled");
		if (mode == GROUP && (!sent || done == (uint64_t)conns)) {
			if (sent && counted && sent >= from) record(t - sent);
			done = seen = 0;
			sent = t;
			for (int i = 1; i < conns; i++) all[i].in = all[0].in;
			all[0].left = size;
			push(&all[0]);
		}
		poll();
	}
	double took = (now() - from) / 1e9;
	uint64_t requests = total;
	if (handshake) {
		// Everything that was begun is to be counted, so that counts made elsewhere fit.
		ending = 1, alive = conns;
		for (uint64_t limit = now() + 10000000000ull; mode == GROUP ? done < (uint64_t)conns : alive > 0; poll())
			if (now() > limit) errno = ETIMEDOUT, die("ending");
		requests = mode == GROUP ? total + 1 : done;
	}
	printf("{\"requests\":%lu,\"seconds\":%.6f,\"p50_us\":%.3f,\"p99_us\":%.3f,\"p999_us\":%.3f,\"max_us\":%.3f,\"over_2ms\":%lu}\n",
	       (unsigned long)requests, took, quantile(.5), quantile(.99), quantile(.999), worst / 1e3, (unsigned long)late);
	fflush(stdout);
	if (keep) wait_for_byte();
	return 0;
}
