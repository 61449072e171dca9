/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Executable memory in small pieces, see Documentation/mm/jitalloc.rst.
 */
#ifndef _LINUX_JITALLOC_H
#define _LINUX_JITALLOC_H

#include <linux/errno.h>
#include <linux/types.h>

#ifdef CONFIG_JITALLOC
void *jit_alloc(const void *buf, size_t len);
void *jit_alloc_flushed(size_t len, void (*flush)(void));
int jit_update(void *dst, const void *src, size_t len);
void jit_free(void *ptr);
#else
static inline void *jit_alloc(const void *buf, size_t len)
{
	return NULL;
}

static inline void *jit_alloc_flushed(size_t len, void (*flush)(void))
{
	return NULL;
}

static inline int jit_update(void *dst, const void *src, size_t len)
{
	return -EOPNOTSUPP;
}

static inline void jit_free(void *ptr)
{
}
#endif /* CONFIG_JITALLOC */

#endif /* _LINUX_JITALLOC_H */
