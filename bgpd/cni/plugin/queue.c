/*
 * A DEL that the daemon did not answer, on the disk until it does.
 *
 * One file per attachment, named after it, so that a DEL that is repeated takes no room; in it the frame as the
 * daemon would have got it. It is complete and on the disk before the runtime hears of success: written under a name
 * with a dot, synchronised, renamed, and the directory synchronised. The daemon takes files away once it has done
 * them, and when it starts also those with a dot, which nobody finishes any more.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin.h"

/* Nine times the pods that a node may have by default (kubelet's maxPods), and 64 MiB at most. */
#define QUEUE_FILES 1024
#define QUEUE_FILE_BYTES (64 << 10)

static bool is_name(const char *text)
{
	if (!*text || *text == '.')
		return false;
	for (; *text; text++)
		if (*text == '/' || *text == ',')
			return false;
	return true;
}

/* `network,container,interface`: what CNI says identifies an attachment. */
static bool name_of(const struct settings *settings, char *name, struct message *problem)
{
	const char *container = getenv("CNI_CONTAINERID"), *interface = getenv("CNI_IFNAME");

	if (!container || !is_name(container) || !interface || !is_name(interface) || !is_name(settings->network)) {
		say(problem, "DEL needs CNI_CONTAINERID, CNI_IFNAME and the network's name");
		return false;
	}
	if (strlen(settings->network) + strlen(container) + strlen(interface) + sizeof(".,,") > NAME_MAX) {
		say(problem, "network, container and interface have names too long for a file's");
		return false;
	}
	*name++ = '.'; /* until it is complete */
	name = stpcpy(stpcpy(name, settings->network), ",");
	stpcpy(stpcpy(stpcpy(name, container), ","), interface);
	return true;
}

/* The directory, opened; -1: `problem` says why not. */
static int open_queue(const char *path, struct message *problem)
{
	int directory;

	if (mkdir(path, 0700) && errno != EEXIST)
		directory = -1;
	else
		directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (directory < 0) {
		say(problem, path);
		say(problem, ": ");
		say_error(problem, errno);
	}
	return directory;
}

static bool has_room(const struct settings *settings, struct message *problem)
{
	DIR *directory = opendir(settings->queue);
	unsigned int files = 0;

	while (directory && readdir(directory))
		files++;
	if (directory)
		closedir(directory);
	if (files < QUEUE_FILES + 2) /* . and .. */
		return true;
	say(problem, settings->queue);
	say(problem, " holds ");
	say_number(problem, QUEUE_FILES);
	say(problem, " of them already, and bgpd takes none");
	return false;
}

static bool write_file(int file, const struct request *request)
{
	return write_all(file, request->head) && write_all(file, request->environment) &&
	       write_all(file, request->configuration) && !fsync(file);
}

/* False with errno set, and then there is no file. */
static bool put(int directory, const char *name, const struct request *request)
{
	int file = openat(directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	int error;

	if (file < 0)
		return false;
	if (write_file(file, request) && !renameat(directory, name, directory, name + 1) && !fsync(directory)) {
		close(file);
		return true;
	}
	error = errno;
	close(file);
	unlinkat(directory, name, 0);
	errno = error;
	return false;
}

bool queue(const struct settings *settings, const struct request *request, struct message *problem)
{
	char name[NAME_MAX + 1];
	int directory;
	bool done;

	if (!name_of(settings, name, problem))
		return false;
	if (request->head.length + request->environment.length + request->configuration.length > QUEUE_FILE_BYTES) {
		say(problem, "with its configuration it is longer than the ");
		say_number(problem, QUEUE_FILE_BYTES);
		say(problem, " bytes that a queued one may have");
		return false;
	}
	directory = open_queue(settings->queue, problem);
	if (directory < 0)
		return false;
	done = has_room(settings, problem);
	if (done) {
		done = put(directory, name, request);
		if (!done) {
			say(problem, settings->queue);
			say(problem, ": ");
			say_error(problem, errno);
		}
	}
	close(directory);
	return done;
}
