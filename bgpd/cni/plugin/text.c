/*
 * Sentences, and the few top-level keys of a JSON object. No printf: it is half of a static program's size.
 *
 * A JSON value that is not looked for is skipped by its quotes and brackets, not checked: the daemon does that.
 */
#include <string.h>

#include "plugin.h"

#define LONGEST_DEADLINE_S 600

void say(struct message *message, const char *text)
{
	size_t room = sizeof(message->text) - 1 - message->length;
	size_t length = strnlen(text, room);

	memcpy(message->text + message->length, text, length);
	message->length += length;
	message->text[message->length] = '\0';
}

void say_number(struct message *message, unsigned long number)
{
	char digits[3 * sizeof(number) + 1];
	char *at = digits + sizeof(digits) - 1;

	*at = '\0';
	do
		*--at = (char)('0' + number % 10);
	while (number /= 10);
	say(message, at);
}

void say_error(struct message *message, int error)
{
	say(message, strerror(error));
}

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void skip_space(struct text *rest)
{
	while (rest->length && is_space(*rest->at))
		rest->at++, rest->length--;
}

static bool skip(struct text *rest, char c)
{
	skip_space(rest);
	if (!rest->length || *rest->at != c)
		return false;
	rest->at++, rest->length--;
	return true;
}

/* The length of the string that starts at `text`, both quotes included; 0: it does not end. */
static size_t string_length(struct text text)
{
	for (size_t at = 1; at < text.length; at++) {
		if (text.at[at] == '\\')
			at++;
		else if (text.at[at] == '"')
			return at + 1;
	}
	return 0;
}

/* The length of the value that starts at `text`; 0: it does not end. */
static size_t value_length(struct text text)
{
	size_t depth = 0, at = 0;

	while (at < text.length) {
		char c = text.at[at];

		if (c == '"') {
			size_t length = string_length((struct text){text.at + at, text.length - at});

			if (!length)
				return 0;
			at += length;
			if (!depth)
				return at;
			continue;
		}
		if (c == '{' || c == '[') {
			depth++;
		} else if (c == '}' || c == ']' || c == ',') {
			if (!depth)
				return at;
			if (c != ',' && !--depth)
				return at + 1;
		}
		at++;
	}
	return 0;
}

/* The next member of the object that `rest` is in. False: there is none, or this is no JSON. */
static bool member(struct text *rest, struct text *key, struct text *value)
{
	for (int part = 0; part < 2; part++) {
		struct text *found = part ? value : key;

		if (part && !skip(rest, ':'))
			return false;
		skip_space(rest);
		found->at = rest->at;
		found->length = value_length(*rest);
		if (!found->length)
			return false;
		rest->at += found->length, rest->length -= found->length;
	}
	skip(rest, ',');
	return true;
}

static bool is(struct text text, const char *wanted)
{
	return text.length == strlen(wanted) && !memcmp(text.at, wanted, text.length);
}

static bool refuse(struct message *problem, const char *key, const char *wanted)
{
	say(problem, "the value of \"");
	say(problem, key);
	say(problem, "\" in the configuration of bgpd-cni cannot be used; give ");
	say(problem, wanted);
	return false;
}

/* A string without escapes that fits. */
static bool take(struct text value, char *into, size_t size)
{
	if (value.length < 3 || value.at[0] != '"' || value.length - 2 >= size ||
	    memchr(value.at, '\\', value.length))
		return false;
	memcpy(into, value.at + 1, value.length - 2);
	into[value.length - 2] = '\0';
	return true;
}

static bool take_path(struct text value, char *into, size_t size)
{
	return take(value, into, size) && into[0] == '/';
}

static bool take_seconds(struct text value, unsigned int *seconds)
{
	unsigned int number = 0;

	while (value.length && is_space(value.at[value.length - 1]))
		value.length--;
	for (size_t at = 0; at < value.length; at++) {
		if (value.at[at] < '0' || value.at[at] > '9' || number > LONGEST_DEADLINE_S)
			return false;
		number = 10 * number + (unsigned int)(value.at[at] - '0');
	}
	*seconds = number;
	return number >= 1 && number <= LONGEST_DEADLINE_S;
}

bool settings_from(struct text configuration, struct settings *settings, struct message *problem)
{
	struct text key, value;

	*settings =
		(struct settings){.socket = DEFAULT_SOCKET, .queue = DEFAULT_QUEUE, .deadline_s = DEFAULT_DEADLINE_S};
	if (!skip(&configuration, '{'))
		return true;
	while (member(&configuration, &key, &value)) {
		if (is(key, "\"cniVersion\""))
			take(value, settings->cni_version, sizeof(settings->cni_version));
		else if (is(key, "\"name\""))
			take(value, settings->network, sizeof(settings->network));
		else if (is(key, "\"socket\"") && !take_path(value, settings->socket, sizeof(settings->socket)))
			return refuse(problem, "socket", "an absolute path of at most 107 plain characters");
		else if (is(key, "\"queue\"") && !take_path(value, settings->queue, sizeof(settings->queue)))
			return refuse(problem, "queue", "an absolute path of plain characters");
		else if (is(key, "\"deadline-seconds\"") && !take_seconds(value, &settings->deadline_s))
			return refuse(problem, "deadline-seconds", "a whole number from 1 to 600");
	}
	return true;
}
