/*
 * bgpd-cni, the CNI plugin: what its parts know of each other.
 *
 * The plugin decides nothing about pods. It carries a request to the daemon and the daemon's answer back, and answers
 * by itself only what must work without the daemon: VERSION always, and everything once the daemon does not answer.
 *
 * Both directions of the connection carry one frame, a line and then bytes (bgpd/cni/frame.py is the other end):
 *
 *     bgpd-cni/1 <bytes of environment> <bytes of configuration>\n   NAME=value\0 of every CNI_ variable, then stdin
 *     bgpd-cni/1 <exit status> <bytes>\n                              what goes to stdout
 *
 * The daemon counts instead of waiting for the end of file, so that the end of file tells it that the plugin was
 * killed.
 */
#ifndef BGPD_CNI_PLUGIN_H
#define BGPD_CNI_PLUGIN_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#define DEFAULT_SOCKET "/run/bgpd/cni.sock"
#define DEFAULT_QUEUE "/var/lib/bgpd/cni-queue"
#define DEFAULT_DEADLINE_S 5

/* A configuration has 2 KiB, with the result of a pod of 16 addresses 6. */
#define CONFIGURATION_BYTES (1 << 20)
#define ENVIRONMENT_BYTES (64 << 10)
#define MESSAGE_BYTES (4 * PATH_MAX)

/* The CNI specification, section 2, "Error", and "STATUS". */
enum code {
	CODE_ENVIRONMENT = 4,
	CODE_IO = 5,
	CODE_DECODE = 6,
	CODE_CONFIGURATION = 7,
	CODE_AGAIN = 11,
	CODE_NOT_AVAILABLE = 50,
};

struct text {
	const char *at;
	size_t length;
};

/* What the plugin itself needs of its configuration. */
struct settings {
	char cni_version[16];
	char network[NAME_MAX + 1]; /* empty: there is none */
	char socket[108];	    /* sun_path, unix(7) */
	char queue[PATH_MAX - NAME_MAX];
	unsigned int deadline_s;
};

/* The frame that the daemon gets, and that a queued DEL is. */
struct request {
	struct text head, environment, configuration;
};

struct answer {
	unsigned int status;
	struct text output;
};

/* A sentence under construction. Nothing that is said fills it: two paths, each character escaped. */
struct message {
	size_t length;
	char text[MESSAGE_BYTES];
};

void say(struct message *message, const char *text);
void say_number(struct message *message, unsigned long number);
void say_error(struct message *message, int error);

/* False: a key that the plugin needs has a value it cannot use, which `problem` names. What cannot be read as JSON
 * is left to the daemon, whose refusal names the place; then the defaults count. */
bool settings_from(struct text configuration, struct settings *settings, struct message *problem);

/* True: the daemon answered, within the deadline and to the end. Else `problem` says why not. */
bool ask(const struct settings *settings, const struct request *request, struct answer *answer,
	 struct message *problem);

/* True: the DEL is on the disk, and the daemon will do it. Else `problem` says why not, and nothing was written. */
bool queue(const struct settings *settings, const struct request *request, struct message *problem);

/* All of `bytes`, or false with errno set. */
bool write_all(int file, struct text bytes);

/* Milliseconds on a clock that no administrator sets. */
long now_ms(void);

#endif
