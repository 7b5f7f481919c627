/*
 * One question to the daemon, one answer, before a deadline.
 *
 * An answer counts only when all of it has come: the daemon may be killed while it speaks.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "plugin.h"

#define HEAD "bgpd-cni/1 "
#define LONGEST_HEAD 64

static char answered[LONGEST_HEAD + CONFIGURATION_BYTES];

long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000L + now.tv_nsec / 1000000L;
}

/* False: the deadline has passed. A signal that wakes us early is harmless: the caller asks again. */
static bool ready(int file, short events, long deadline_ms)
{
	struct pollfd wait = {.fd = file, .events = events};
	long rest_ms = deadline_ms - now_ms();

	return rest_ms > 0 && poll(&wait, 1, (int)rest_ms) != 0;
}

/* The connection, or -1 with errno set. A queue of the daemon that is full makes it wait: EAGAIN at the deadline. */
static int dial(const char *path, long deadline_ms)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	long rest_ms = deadline_ms - now_ms();
	struct timeval rest = {.tv_sec = rest_ms / 1000, .tv_usec = rest_ms % 1000 * 1000};
	int file = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (file < 0)
		return -1;
	strcpy(address.sun_path, path);
	/* 0 would mean for ever */
	if (rest_ms > 0 && !setsockopt(file, SOL_SOCKET, SO_SNDTIMEO, &rest, sizeof(rest)) &&
	    !connect(file, (struct sockaddr *)&address, sizeof(address)))
		return file;
	if (rest_ms <= 0)
		errno = EAGAIN;
	close(file);
	return -1;
}

/* False with errno set, EAGAIN at the deadline. */
static bool send_all(int file, struct text bytes, long deadline_ms)
{
	while (bytes.length) {
		ssize_t sent = send(file, bytes.at, bytes.length, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent > 0) {
			bytes.at += sent;
			bytes.length -= (size_t)sent;
		} else if (errno == EAGAIN && !ready(file, POLLOUT, deadline_ms)) {
			errno = EAGAIN;
			return false;
		} else if (errno != EAGAIN && errno != EINTR) {
			return false;
		}
	}
	return true;
}

/* A number and the character after it. */
static bool number(struct text *rest, char end, size_t highest, size_t *value)
{
	size_t digits = 0;

	for (*value = 0; rest->length && *rest->at != end; rest->at++, rest->length--, digits++) {
		if (*rest->at < '0' || *rest->at > '9' || *value > highest)
			return false;
		*value = 10 * *value + (size_t)(*rest->at - '0');
	}
	if (!rest->length || !digits || *value > highest)
		return false;
	rest->at++, rest->length--;
	return true;
}

/* False: what has come is not a whole answer. */
static bool is_whole(size_t length, struct answer *answer)
{
	struct text rest = {answered, length};
	size_t status, bytes;

	if (length < strlen(HEAD) || memcmp(answered, HEAD, strlen(HEAD)))
		return false;
	rest.at += strlen(HEAD), rest.length -= strlen(HEAD);
	if (!number(&rest, ' ', 255, &status) || !number(&rest, '\n', CONFIGURATION_BYTES, &bytes) ||
	    rest.length != bytes)
		return false;
	answer->status = (unsigned int)status;
	answer->output = rest;
	return true;
}

/* False with errno set: EAGAIN at the deadline, EPROTO when the connection ended before the answer did. */
static bool receive(int file, struct answer *answer, long deadline_ms)
{
	size_t length = 0;

	while (!is_whole(length, answer)) {
		ssize_t got;

		if (!ready(file, POLLIN, deadline_ms)) {
			errno = EAGAIN;
			return false;
		}
		got = recv(file, answered + length, sizeof(answered) - length, MSG_DONTWAIT);
		if (got > 0) {
			length += (size_t)got;
		} else if (got == 0) { /* or no room: no answer is so long */
			errno = EPROTO;
			return false;
		} else if (errno != EAGAIN && errno != EINTR) {
			return false;
		}
	}
	return true;
}

static void explain(const struct settings *settings, int error, struct message *problem)
{
	say(problem, "bgpd at ");
	say(problem, settings->socket);
	if (error == EAGAIN) {
		say(problem, " did not answer within ");
		say_number(problem, settings->deadline_s);
		say(problem, " s; if \"systemctl status bgpd\" shows that it hangs, run \"systemctl restart bgpd\"");
	} else if (error == EPROTO || error == ECONNRESET || error == EPIPE) {
		say(problem,
		    " ended before it answered; \"systemctl status bgpd\" shows whether it is starting again");
	} else {
		say(problem, " cannot be reached: ");
		say_error(problem, error);
		say(problem, "; start it with \"systemctl start bgpd\"");
	}
}

bool ask(const struct settings *settings, const struct request *request, struct answer *answer,
	 struct message *problem)
{
	long deadline_ms = now_ms() + 1000L * settings->deadline_s;
	int file = dial(settings->socket, deadline_ms);
	bool sent, answered_all;

	if (file < 0) {
		explain(settings, errno, problem);
		return false;
	}
	sent = send_all(file, request->head, deadline_ms) && send_all(file, request->environment, deadline_ms) &&
	       send_all(file, request->configuration, deadline_ms);
	/* A daemon that refuses a request for its length answers before it has read all of it. */
	answered_all = (sent || errno == EPIPE || errno == ECONNRESET) && receive(file, answer, deadline_ms);
	if (!answered_all)
		explain(settings, errno, problem);
	close(file);
	return answered_all;
}
