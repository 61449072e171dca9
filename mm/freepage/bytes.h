/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Numbers of bytes that users write to files of mm/freepage.
 */
#ifndef _MM_FREEPAGE_BYTES_H
#define _MM_FREEPAGE_BYTES_H

#include <linux/ctype.h>
#include <linux/kstrtox.h>
#include <linux/overflow.h>
#include <linux/string.h>

/**
 * freepage_parse_bytes - read a number of bytes
 * @buf: what was written: a number, decimal or with 0x, with a suffix from K to E
 *	if it is decimal, or none
 * @bytes: set to the number
 *
 * Unlike memparse(), this refuses what does not fit, and what follows the number.
 *
 * Return: 0, -EINVAL or -ERANGE.
 */
static inline int freepage_parse_bytes(const char *buf, u64 *bytes)
{
	static const char suffixes[] = "KMGTPE";
	unsigned int shift = 0;
	char copy[32], *text;
	int err;

	if (strscpy(copy, buf) < 0)
		return -EINVAL;
	text = strim(copy);
	/* Not the last digit of a hexadecimal number. */
	if (*text && strncasecmp(text, "0x", 2)) {
		char *last = text + strlen(text) - 1;
		const char *suffix = strchr(suffixes, toupper(*last));

		if (suffix) {
			shift = 10 * (suffix - suffixes + 1);
			*last = '\0';
		}
	}
	err = kstrtoull(text, 0, bytes);
	if (!err && check_shl_overflow(*bytes, shift, bytes))
		err = -ERANGE;
	return err;
}

#endif /* _MM_FREEPAGE_BYTES_H */
