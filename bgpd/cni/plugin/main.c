/*
 * bgpd-cni: reads what the runtime gave, asks the daemon, prints the answer. See plugin.h.
 *
 * Without the daemon: ADD, CHECK and GC fail with "try again later", STATUS says that the plugin is not available,
 * and DEL succeeds once it is on the disk, because a pod must be able to go while the daemon is down.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>

#include "plugin.h"

#define NEWEST "1.1.0"

extern char **environ;

/* Found in the program by a test: these are the sources that it was built from. */
__attribute__((used, retain)) static const char built_from[] = "bgpd-cni from sources " SOURCES;

static const char *const versions[] = {"0.3.1", "0.4.0", "1.0.0", NEWEST};
static const char *const verbs[] = {"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"};

static char configuration[CONFIGURATION_BYTES + 1];
static char environment[ENVIRONMENT_BYTES];

bool write_all(int file, struct text bytes)
{
	while (bytes.length) {
		ssize_t written = write(file, bytes.at, bytes.length);

		if (written > 0) {
			bytes.at += written;
			bytes.length -= (size_t)written;
		} else if (errno != EINTR) {
			return false;
		}
	}
	return true;
}

static bool print(const struct message *message)
{
	return write_all(STDOUT_FILENO, (struct text){message->text, message->length});
}

static void say_string(struct message *message, const char *text)
{
	say(message, "\"");
	for (char one[2] = ""; *text; text++) {
		one[0] = (unsigned char)*text < ' ' ? ' ' : *text;
		if (*text == '"' || *text == '\\')
			say(message, "\\");
		say(message, one);
	}
	say(message, "\"");
}

/* The error of the CNI specification, on stdout; returns the exit status. */
static int fail(const struct settings *settings, enum code code, const struct message *problem)
{
	struct message json = {0};

	say(&json, "{\"cniVersion\": ");
	say_string(&json, settings->cni_version[0] ? settings->cni_version : NEWEST);
	say(&json, ", \"code\": ");
	say_number(&json, code);
	say(&json, ", \"msg\": ");
	say_string(&json, problem->text);
	say(&json, "}\n");
	print(&json);
	return EXIT_FAILURE;
}

static bool is_one_of(const char *text, const char *const *known, size_t count)
{
	for (size_t at = 0; at < count; at++)
		if (!strcmp(text, known[at]))
			return true;
	return false;
}

/* False: stdin is longer than a configuration, or did not end in time. */
static bool read_configuration(struct text *text, struct message *problem)
{
	long deadline_ms = now_ms() + 1000L * DEFAULT_DEADLINE_S;

	*text = (struct text){configuration, 0};
	while (text->length <= CONFIGURATION_BYTES) {
		struct pollfd wait = {.fd = STDIN_FILENO, .events = POLLIN};
		long rest_ms = deadline_ms - now_ms();
		ssize_t got;

		if (rest_ms <= 0 || !poll(&wait, 1, (int)rest_ms)) {
			say(problem, "stdin did not end; the runtime closes it after the network configuration");
			return false;
		}
		got = read(STDIN_FILENO, configuration + text->length, sizeof(configuration) - text->length);
		if (got == 0)
			return true;
		if (got > 0) {
			text->length += (size_t)got;
		} else if (errno != EINTR) {
			say(problem, "stdin cannot be read: ");
			say_error(problem, errno);
			return false;
		}
	}
	say(problem, "the network configuration on stdin is longer than ");
	say_number(problem, CONFIGURATION_BYTES);
	say(problem, " bytes");
	return false;
}

/* Every CNI_ variable, each with its NUL. False: they do not fit. */
static bool read_environment(struct text *text, struct message *problem)
{
	*text = (struct text){environment, 0};
	for (char **variable = environ; *variable; variable++) {
		size_t bytes = strlen(*variable) + 1;

		if (strncmp(*variable, "CNI_", 4))
			continue;
		if (bytes > sizeof(environment) - text->length) {
			say(problem, "the CNI_ variables of the environment are longer than ");
			say_number(problem, sizeof(environment));
			say(problem, " bytes together");
			return false;
		}
		memcpy(environment + text->length, *variable, bytes);
		text->length += bytes;
	}
	return true;
}

static int print_versions(const struct settings *settings)
{
	bool known = is_one_of(settings->cni_version, versions, sizeof(versions) / sizeof(*versions));
	struct message json = {0};

	say(&json, "{\"cniVersion\": ");
	say_string(&json, known ? settings->cni_version : NEWEST);
	say(&json, ", \"supportedVersions\": [");
	for (size_t at = 0; at < sizeof(versions) / sizeof(*versions); at++) {
		say(&json, at ? ", " : "");
		say_string(&json, versions[at]);
	}
	say(&json, "]}\n");
	return print(&json) ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* What there is to say when the daemon did not answer; `problem` tells why it did not. */
static int without_daemon(const char *verb, const struct settings *settings, const struct request *request,
			  struct message *problem)
{
	struct message told;

	if (!strcmp(verb, "STATUS"))
		return fail(settings, CODE_NOT_AVAILABLE, problem);
	if (strcmp(verb, "DEL"))
		return fail(settings, CODE_AGAIN, problem);
	told = *problem;
	say(problem, "; the DEL cannot be queued either: ");
	if (!queue(settings, request, problem))
		return fail(settings, CODE_AGAIN, problem);
	say(&told, "; the DEL is queued in ");
	say(&told, settings->queue);
	say(&told, "\n");
	write_all(STDERR_FILENO, (struct text){told.text, told.length}); /* for whoever runs it by hand */
	return EXIT_SUCCESS;
}

static int forward(const char *verb, const struct settings *settings, struct request *request)
{
	struct message head = {0}, problem = {0};
	struct answer answer;

	say(&head, "bgpd-cni/1 ");
	say_number(&head, request->environment.length);
	say(&head, " ");
	say_number(&head, request->configuration.length);
	say(&head, "\n");
	request->head = (struct text){head.text, head.length};
	if (!ask(settings, request, &answer, &problem))
		return without_daemon(verb, settings, request, &problem);
	return write_all(STDOUT_FILENO, answer.output) ? (int)answer.status : EXIT_FAILURE;
}

int main(void)
{
	const char *verb = getenv("CNI_COMMAND");
	struct settings settings = {0};
	struct request request = {0};
	struct message problem = {0};
	bool complete;

	if (!verb || !is_one_of(verb, verbs, sizeof(verbs) / sizeof(*verbs))) {
		say(&problem, "CNI_COMMAND must be ADD, DEL, CHECK, GC, STATUS or VERSION");
		return fail(&settings, CODE_ENVIRONMENT, &problem);
	}
	complete = read_configuration(&request.configuration, &problem);
	if (!strcmp(verb, "VERSION")) { /* before CNI 1.0.0 nothing comes on stdin */
		settings_from(request.configuration, &settings, &problem);
		return print_versions(&settings);
	}
	if (!complete)
		return fail(&settings, CODE_IO, &problem);
	if (!settings_from(request.configuration, &settings, &problem))
		return fail(&settings, CODE_CONFIGURATION, &problem);
	if (!read_environment(&request.environment, &problem))
		return fail(&settings, CODE_ENVIRONMENT, &problem);
	return forward(verb, &settings, &request);
}
